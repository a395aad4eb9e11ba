"""Many images of one prompt: every combination of values, a folder of images, a grid."""

from sdpipe.sweep.sweep import Sweep

__all__ = ["Sweep"]
