import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sdpipe.cli.interrupt import GRACE, interruptible

BUSY = 3.0  # seconds that a machine with other things to do may add

PROGRAM = """
import sys, time, weakref
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

# An import holds a weak reference to its lock, with a callback: where the signal finds it, Python
# reports the exception and drops it.
IN_A_CALLBACK = """
class Lock: pass

def callback(_):
    print("ready", flush=True)
    time.sleep(30)

def hang():
    lock = Lock()
    reference = weakref.ref(lock, callback)
    del lock
    time.sleep(30)
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


@pytest.mark.parametrize(
    ("number", "times", "status"),
    [(signal.SIGINT, 1, 130), (signal.SIGTERM, 1, 143), (signal.SIGINT, 2, 130)],
)
@pytest.mark.parametrize(
    "hang", [STUBBORN, IN_A_CALLBACK, IN_AN_IMPORT], ids=["stubborn", "callback", "import"]
)
def test_a_program_that_does_not_end_is_ended(
    hang, tmp_path, tmp_path_factory, number, times, status
):
    folders = [str(tmp_path), str(tmp_path_factory.mktemp("modules"))]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(hang=hang), *folders],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.05)
        assert process.wait(20) == status
        assert time.monotonic() - started < GRACE + BUSY
        assert process.stderr.read() == "\nsdpipe: interrupted\n"
        assert "raised" not in process.stdout.read()
    assert os.listdir(tmp_path) == []


def test_patience_ends_within_a_second():
    assert GRACE < 1


def test_a_program_that_ends_by_itself_is_left_alone():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.status == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    time.sleep(GRACE + 0.2)  # longer than its patience: had the watcher lived on, this were the end


def test_what_else_is_dropped_is_reported_as_ever(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    hook = sys.unraisablehook

    class Failing:
        def __del__(self):
            raise ValueError("told")

    with interruptible():
        Failing()
    assert [type(one.exc_value) for one in reported] == [ValueError]
    assert sys.unraisablehook == hook


def test_other_signals_are_none_of_its_business():
    with interruptible() as interruption:
        old = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.raise_signal(signal.SIGALRM)
        signal.signal(signal.SIGALRM, old)
        time.sleep(GRACE + 0.2)
        assert interruption.status is None


def test_outside_the_main_thread_nothing_is_changed():
    handlers = []

    def run():
        with interruptible():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
