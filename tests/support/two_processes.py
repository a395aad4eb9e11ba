"""Runs the command line as one of several processes, and notes each step of its training.

Usage: two_processes.py FOLDER ARGUMENTS... Each process writes FOLDER/RANK.json: for every step the
checksums of its batch and the sum of the weights before it.
"""

import json
import os
import sys
import zlib
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from sdpipe.cli.app import main

steps = []


def note(module, inputs):
    if isinstance(module, DistributedDataParallel):
        batch = [zlib.crc32(x.detach().contiguous().numpy().tobytes()) for x in inputs]
        weights = sum(p.detach().double().abs().sum().item() for p in module.parameters())
        steps.append((batch, weights))


torch.nn.modules.module.register_module_forward_pre_hook(note)
folder = Path(sys.argv.pop(1))
status = main()
(folder / f"{os.environ['RANK']}.json").write_text(json.dumps(steps))
sys.exit(status)
