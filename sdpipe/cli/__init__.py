"""The command line: parse, call, print. What a command does is done elsewhere."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, see `sdpipe.cli.app.main`."""
    from sdpipe.cli.app import main

    return main(arguments)
