"""Command lines that need no torch: run here, or in a process that must not have imported it."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys

from sdpipe.cli import main

# A model of random weights diverges under lms, and a warning says so; under ddim it cannot.
FAST = ["--device", "cpu", "--dtype", "float32", "--steps", "3", "--g", "1", "--scheduler", "ddim"]

CODE = """
import contextlib, io, json, sys
from sdpipe.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            status = main(words)
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
print(json.dumps(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules))))
"""


def answers(lines, folder):
    """The status, stdout and stderr of each line, a list of words, typed in a folder."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE, json.dumps(lines)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        text=True,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    *given, imported = [json.loads(line) for line in done.stdout.splitlines()]
    assert imported == []
    assert len(given) == len(lines)
    return given


def assert_told(wrong, folder):
    """That each wrong line is refused in a paragraph which holds the text beside it."""
    for line, told in wrong.items():
        err, stdin = io.StringIO(), sys.stdin
        sys.stdin = io.TextIOWrapper(io.BytesIO())
        try:
            with contextlib.chdir(folder), contextlib.redirect_stderr(err):
                status = main(line.split(" "))
        finally:
            sys.stdin = stdin
        assert status == 2, line
        assert re.fullmatch(r"sdpipe: error: [^\n]*[.?]\n", err.getvalue()), (line, err.getvalue())
        assert told.lower() in err.getvalue().lower(), (line, err.getvalue())
