"""Images of what happens inside: consumers of `Step` and of the stages."""
