import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest
from support.command_lines import FAST
from support.forked import forked

from sdpipe.cli.interrupt import interruptible

PROGRAM = """
import sys, time
from pathlib import Path
from sdpipe.io.files import temporary_path
from sdpipe.cli.interrupt import interruptible

{hang}

with interruptible(), temporary_path(Path(sys.argv[1])) as temporary:
    temporary.touch()
    hang()
"""

STUBBORN = """
def hang():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(30)
        except BaseException:  # as libraries do that write a bare except
            pass
"""

# Torch's C++ calls Python while it is imported, and aborts if that raises.
IN_AN_IMPORT = """
SLOW = '''
import time
try:
    print("ready", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    print("raised", flush=True)
'''

def hang():
    Path(sys.argv[2], "slow_to_import.py").write_text(SLOW)
    sys.path.append(sys.argv[2])
    import slow_to_import
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize(("hang", "times"), [(STUBBORN, 2), (IN_AN_IMPORT, 1)])
def test_a_program_that_does_not_end_is_ended(
    hang, times, tmp_path, tmp_path_factory, number, status
):
    """By a second signal; in an import by the first."""
    folders = [str(tmp_path), str(tmp_path_factory.mktemp("modules"))]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(hang=hang), *folders],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(times):
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
        assert process.wait(60) == status
        assert process.stderr.read() == "\nsdpipe: interrupted\n"
        assert "raised" not in process.stdout.read()
    assert os.listdir(tmp_path) == []


def test_a_program_that_ends_by_itself_is_left_alone():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.status == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_changed():
    handlers = []

    def run():
        with interruptible():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


class OnTerminal:
    """`sdpipe` in a process of its own, with a terminal as its standard error."""

    def __init__(self, start, *arguments, cwd):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        self.process = start(
            *arguments, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs
        )
        os.close(theirs)
        self.shown = ""
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours):
        with open(ours, "rb", buffering=0) as terminal:
            try:
                while data := terminal.read(4096):
                    self.shown += data.decode()
            except OSError:  # how Linux says that the other end is closed
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.end()

    def wait_for(self, text):
        until = time.monotonic() + 300
        while text not in self.shown:
            assert self.process.poll() is None, self.shown
            assert time.monotonic() < until, self.shown
            time.sleep(0.02)

    def end(self):
        if not self.process.stdout.closed:
            self.printed = self.process.communicate(timeout=60)[0].decode()
            self._reader.join(10)
        return self.printed


def executed(*arguments, **options):
    """`sdpipe` as a program, which begins with the imports."""
    return subprocess.Popen([sys.executable, "-m", "sdpipe", *arguments], **options)


@pytest.mark.parametrize(
    ("start", "moment", "number", "status"),
    [
        (executed, "loading", signal.SIGINT, 130),
        (forked, "drawing", signal.SIGINT, 130),
        (forked, "writing", signal.SIGTERM, 143),
    ],
)
def test_on_a_terminal_an_interrupt_ends_the_command(
    model, tmp_path, start, moment, number, status
):
    steps = "900" if moment == "drawing" else "150"
    options = ["--model", model, *FAST, "--steps", steps, "--save-int"]
    arguments = ["generate", "red apple", "--out", "x.png", *options]
    with OnTerminal(start, *arguments, cwd=tmp_path) as run:
        if moment == "writing":
            run.wait_for("writing x.steps:")  # with its bar
        else:
            run.wait_for(moment)
            time.sleep(0.3)
        run.process.send_signal(number)
        out = run.end()
        assert run.process.returncode == status
    assert "Traceback" not in run.shown
    assert run.shown.endswith("sdpipe: interrupted\r\n")
    finished = ["x.png"] if moment == "writing" else []
    assert os.listdir(tmp_path) == finished
    assert out.split() == finished
    assert run.shown.startswith("loading the model")
    if moment == "writing":
        assert re.search(r"drawing: 100%\S* 150/150 \[.*it/s\]", run.shown)
        assert re.search(r"writing x.steps: ", run.shown)


def test_images_are_written_as_they_are_drawn(model, tmp_path):
    """Ctrl-C after the first of 99: what is written stays, and the seed of the rest is told."""
    command = ["generate", "red apple", "--model", model, *FAST, "-n", "99", "--batch-invariant"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with forked(*command, "--out", str(tmp_path), **pipes) as process:
        first = process.stdout.readline()
        assert os.path.exists(first.strip())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    written = sorted(str(path) for path in tmp_path.iterdir())
    assert [first.strip(), *out.split()] == written
    assert len(written) < 99
    told = rf"sdpipe: {len(written)} of 99 images are written; --seed \d+ draws the same\."
    assert re.fullmatch(told + "\nsdpipe: interrupted\n", err)


def test_what_ignores_a_closed_terminal_goes_on_ignoring_it():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)
