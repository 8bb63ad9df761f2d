"""The process round a role, run in this process: how it ends."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest
from prometheus_client import CollectorRegistry

from glinthawk.config import PeerConfig
from glinthawk.core.dtype import DType
from glinthawk.wire.member import EXIT_FAILED, EXIT_OK, MemberProcess, Role
from glinthawk.wire.messages import AttentionOffer, View
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

WAIT_S = 60.0


class IdleRole(Role):
    """Computes nothing. in_run: what its compute thread does first."""

    def __init__(self, in_run: Callable[[], None] = lambda: None) -> None:
        self._in_run = in_run
        self._stopped = threading.Event()
        self.runs = threading.Event()

    @property
    def offer(self) -> AttentionOffer:
        return AttentionOffer(1 << 20, (DType.FLOAT32,))

    def run(self) -> None:
        self._in_run()
        self.runs.set()
        self._stopped.wait(WAIT_S)

    def stop(self) -> None:
        self._stopped.set()

    def accept(self, connection: Connection, hello: Hello) -> None:
        connection.close()

    def follow(self, view: View) -> None:
        pass

    def forget(self) -> None:
        pass

    def stats(self) -> Mapping[str, float]:
        return {}


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Those of the test's process, put back."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def make_process(role: Role) -> MemberProcess:
    return MemberProcess(PeerConfig(name="w0", gateway="127.0.0.1:1"), role, CollectorRegistry())


def when_it_runs(role: IdleRole, work: Callable[[], None]) -> None:
    def act() -> None:
        assert role.runs.wait(WAIT_S)
        work()

    threading.Thread(target=act, name="the-thread", daemon=True).start()


def test_signals_in_any_number_end_it_well() -> None:
    role = IdleRole()

    def send() -> None:
        for _ in range(100):
            os.kill(os.getpid(), signal.SIGTERM)

    when_it_runs(role, send)
    assert make_process(role).serve() == EXIT_OK


def test_a_thread_that_ends_by_a_defect_ends_it() -> None:
    def fail() -> None:
        raise ValueError("a prompt")

    role = IdleRole()
    when_it_runs(role, fail)
    assert make_process(role).serve() == EXIT_FAILED


def test_a_compute_thread_that_ends_by_a_defect_ends_it() -> None:
    def fail() -> None:
        raise ValueError("a prompt")

    assert make_process(IdleRole(fail)).serve() == EXIT_FAILED
