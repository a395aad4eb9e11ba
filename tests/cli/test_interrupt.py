import os
import signal
import subprocess
import sys
import threading

import pytest

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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
