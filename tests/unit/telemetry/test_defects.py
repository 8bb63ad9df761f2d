"""Threads that end by a defect, seen by their process."""

import io
import threading

import pytest

from glinthawk.errors import InvariantBroken, PeerUnavailable
from glinthawk.telemetry.defects import ThreadDefects
from glinthawk.telemetry.logging import configure_logging


def run_thread(error: BaseException | None) -> None:
    def work() -> None:
        if error is not None:
            raise error

    thread = threading.Thread(target=work, name="the-thread")
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "error", [ValueError("a prompt"), AssertionError(), PeerUnavailable("away")], ids=repr
)
def test_a_thread_that_ends_by_an_error_is_logged_and_told_of(error: Exception) -> None:
    output = io.StringIO()
    configure_logging("info", "json", role="gateway", name="g", stream=output)
    with ThreadDefects() as defects:
        run_thread(None)
        defects.check()
        run_thread(error)
        with pytest.raises(InvariantBroken, match=f"'the-thread' \\({type(error).__name__}\\)"):
            defects.check()
    line = output.getvalue()
    assert '"event": "thread_defect"' in line
    assert "test_defects.py" in line
    assert "a prompt" not in line


def test_the_first_defect_counts() -> None:
    with ThreadDefects() as defects:
        run_thread(KeyError())
        run_thread(ValueError())
    assert "KeyError" in str(defects.failure)


def test_who_is_to_act_is_told_of_the_first() -> None:
    told: list[InvariantBroken] = []
    with ThreadDefects(told.append) as defects:
        run_thread(KeyError())
        run_thread(ValueError())
    assert told == [defects.failure]


def test_a_thread_that_asks_to_end_has_no_defect() -> None:
    with ThreadDefects() as defects:
        run_thread(SystemExit(3))
    assert defects.failure is None


def test_who_took_note_before_does_so_again_afterwards() -> None:
    before = threading.excepthook
    with ThreadDefects():
        assert threading.excepthook != before
    assert threading.excepthook == before
