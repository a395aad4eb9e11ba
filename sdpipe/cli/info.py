"""The command that shows the metadata of images."""

import dataclasses
import json
from typing import Annotated, Any

import typer

from sdpipe.cli import console, options
from sdpipe.errors import SdpipeError

Images = Annotated[list[str], typer.Argument(metavar="IMAGE", help="PNG, JPEG or WebP.")]


def info(image: Images, as_json: options.PrintJson = False, debug: options.Debug = False) -> int:
    """Shows how images were drawn, by sdpipe or another program: see docs/reference/metadata.md."""
    found: list[dict[str, Any]] = []
    status = 0
    for path in image:
        try:
            known = _read(path)
        except SdpipeError as error:
            status = max(status, console.report_error(error))
            continue
        if not as_json:
            console.print_result(f"\n{known}" if found else str(known))
        found.append(known.to_dict())
    if as_json:
        console.print_result(json.dumps(found, ensure_ascii=False, indent=2))
    return status


def _read(path: str) -> Any:
    """An image's info; for the grid of a sweep, with the command that draws it again."""
    from sdpipe.metadata.info import info

    found = info(path)
    if found.record.sweep is None:
        return found
    from sdpipe.sweep.command import sweep_command

    return dataclasses.replace(found, command=sweep_command(path, found.record))
