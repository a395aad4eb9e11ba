"""`sdpipe` in a fork of the test process: in a process of its own, without its imports."""

import os
import subprocess
import sys

from sdpipe.cli.app import main


def forked(*arguments, **options):
    """A `subprocess.Popen` of the command line; `options` are those of Popen.

    The child calls `main` where another would execute a program.
    """

    def run():
        status = 1
        try:
            os.closerange(3, 256)  # with the pipe by which Popen learns that a program runs
            sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
            sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
            status = main(arguments)
            sys.stdout.flush()
        except SystemExit as end:
            status = end.code
        finally:
            os._exit(status)

    return subprocess.Popen(["sdpipe"], preexec_fn=run, **options)
