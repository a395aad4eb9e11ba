"""`sdpipe doctor`: does sdpipe work on this machine."""

import json
from dataclasses import asdict
from typing import Annotated

from sdpipe.cli import console, options

Offline = Annotated[
    bool,
    options.flag("Check", "Ask the hub nothing, not even the size of a download.", "--offline"),
]


def doctor(
    offline: Offline = False, as_json: options.PrintJson = False, debug: options.Debug = False
) -> int:
    """Checks whether images can be drawn on this machine, and says what helps if not.

    Most of the time goes into importing torch and drawing a small image. Nothing is downloaded. The
    exit status is 0 if images can be drawn, and 1 if a problem prevents it.
    """
    from sdpipe.doctor import examine, is_working

    found, remaining = [], examine(offline=offline)
    while True:
        with console.status("importing torch and drawing a small image ..."):
            finding = next(remaining, None)
        if finding is None:
            break
        found.append(finding)
        if not as_json:
            console.print_result(str(finding))
    works = is_working(found)
    if as_json:
        values = {"works": works, "findings": [asdict(finding) for finding in found]}
        console.print_result(json.dumps(values, ensure_ascii=False, indent=2))
    return 0 if works else console.FAILED
