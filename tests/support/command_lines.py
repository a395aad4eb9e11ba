"""Command lines that need no torch, all in one process, which must not have imported it."""

import json
import os
import re
import subprocess
import sys

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
        timeout=100,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    *given, imported = [json.loads(line) for line in done.stdout.splitlines()]
    assert imported == []
    assert len(given) == len(lines)
    return given


def assert_told(wrong, folder):
    """That each wrong line is refused in a paragraph which holds the text beside it."""
    lines = [line.split(" ") for line in wrong]
    for (line, told), (status, _, err) in zip(wrong.items(), answers(lines, folder), strict=True):
        assert status == 2, line
        assert re.fullmatch(r"sdpipe: error: [^\n]*\.\n", err), (line, err)
        assert told.lower() in err.lower(), (line, err)
