import os
import signal
import subprocess
import sys

import pytest

from glinthawk.telemetry.parent import PARENT_VARIABLE

WAIT_S = 60.0

WAITS = """
import signal, time
from glinthawk.telemetry.parent import end_with_parent

{before}
end_with_parent()
print("watching", flush=True)
time.sleep(600)
"""


def start(parent: int, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WAITS.format(before=before)],
        env={**os.environ, PARENT_VARIABLE: str(parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def find_ended_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_process_goes_on_while_its_parent_lives() -> None:
    with start(os.getpid()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.kill()


def test_a_parent_that_was_gone_before_the_watch_began_is_noticed() -> None:
    with start(find_ended_process()) as process:
        assert process.wait(WAIT_S) == -signal.SIGTERM


def test_the_end_comes_though_nobody_reads_stderr_any_more() -> None:
    with start(find_ended_process()) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(WAIT_S) == -signal.SIGTERM


def test_a_process_that_does_not_heed_the_signal_is_ended() -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    with start(find_ended_process(), deaf) as process:
        assert process.wait(WAIT_S) == 1
