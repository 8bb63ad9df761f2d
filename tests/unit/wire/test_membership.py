import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from glinthawk.core.dtype import DType
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.membership_client import MembershipClient, MembershipOptions
from glinthawk.wire.membership_server import MembershipServer
from glinthawk.wire.messages import (
    Accepted,
    AttentionOffer,
    Heartbeat,
    Member,
    Refused,
    Registration,
    Role,
    View,
)

WAIT_S = 120.0
WORKER = Registration("worker-0", "1", "h:1", AttentionOffer(1 << 30, (DType.FLOAT16,)))
VIEW = View(5, (), (Member(Role.ATTENTION, "worker-0", "h:1"),))


class Gateway:
    """Records what a gateway learns; accepts whom `answer` accepts."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.answer: Callable[[Registration], Accepted | Refused] = lambda _: Accepted(5, 60.0)
        self.now = 0.0
        self.is_busy = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.server = MembershipServer(self, lambda: self.now, check_every_s=0.02)

    def on_join(self, registration: Registration) -> Accepted | Refused:
        self.events.put(("join", registration))
        return self.answer(registration)

    def on_joined(self, registration: Registration) -> None:
        self.server.broadcast(VIEW)

    def on_heartbeat(self, name: str, heartbeat: Heartbeat) -> None:
        if not self.goes_on.is_set():
            self.is_busy.set()
        assert self.goes_on.wait(WAIT_S)
        if self.events.qsize() < 100:
            self.events.put(("heartbeat", name, dict(heartbeat.stats)))

    def on_leave(self, name: str, reason: str, lost: bool) -> None:
        self.events.put(("leave", name, reason, lost))

    def wait_for(self, kind: str) -> tuple[Any, ...]:
        return wait_for(self.events, kind)


class Process:
    """Records what a member learns."""

    def __init__(
        self, address: str, registration: Registration = WORKER, secret: str = "s"
    ) -> None:
        self.events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        options = MembershipOptions(address, secret=secret, backoff_s=0.05, max_backoff_s=0.2)
        self.client = MembershipClient(
            registration, self, lambda: Heartbeat({"kv_used_bytes": 3.0}), options
        )
        self.client.start()

    def on_accepted(self, accepted: Accepted) -> None:
        self.events.put(("accepted", accepted))

    def on_view(self, view: View) -> None:
        self.events.put(("view", view))

    def on_refused(self, reason: str) -> None:
        self.events.put(("refused", reason))

    def on_shutdown(self, reason: str) -> None:
        self.events.put(("shutdown", reason))

    def on_lost(self, reason: str) -> None:
        self.events.put(("lost", reason))

    def wait_for(self, kind: str) -> tuple[Any, ...]:
        return wait_for(self.events, kind)


def wait_for(events: "queue.Queue[tuple[Any, ...]]", kind: str) -> tuple[Any, ...]:
    deadline = time.monotonic() + WAIT_S
    while True:
        event = events.get(timeout=max(0.01, deadline - time.monotonic()))
        if event[0] == kind:
            return event


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def address(gateway: Gateway) -> Iterator[str]:
    server = GrpcServer("127.0.0.1", 0, secret="s")
    gateway.server.attach(server)
    server.start()
    gateway.server.start()
    yield server.address
    gateway.server.stop("the test is over")
    server.stop(0.0)


@pytest.fixture
def process(address: str) -> Iterator[Process]:
    process = Process(address)
    yield process
    process.client.stop()


def test_a_member_joins_is_told_the_view_and_shows_signs_of_life(
    gateway: Gateway, process: Process
) -> None:
    assert process.wait_for("accepted") == ("accepted", Accepted(5, 60.0))
    assert process.wait_for("view") == ("view", VIEW)
    assert gateway.wait_for("join") == ("join", WORKER)
    assert gateway.wait_for("heartbeat") == ("heartbeat", "worker-0", {"kv_used_bytes": 3.0})
    assert gateway.server.names() == ["worker-0"]


def test_leaving_on_purpose_is_not_a_loss(gateway: Gateway, process: Process) -> None:
    process.wait_for("accepted")
    process.client.stop("drained")
    assert gateway.wait_for("leave") == ("leave", "worker-0", "drained", False)
    assert process.events.empty() or process.wait_for("view")


def test_a_refused_process_learns_why_and_stops(gateway: Gateway, address: str) -> None:
    gateway.answer = lambda _: Refused("another model")
    process = Process(address)
    assert process.wait_for("refused") == ("refused", "another model")
    process.client.stop()
    assert gateway.server.names() == []


def test_who_comes_while_the_gateway_ends_is_not_refused_but_told(
    gateway: Gateway, address: str
) -> None:
    gateway.server.stop("the run is over")
    process = Process(address)
    assert process.wait_for("shutdown") == ("shutdown", "it is ending")
    process.client.stop()
    assert gateway.server.names() == []


def test_another_protocol_version_is_refused_with_both_numbers(
    gateway: Gateway, address: str
) -> None:
    registration = Registration("w", "9", "h:1", WORKER.offer, protocol_version=99)
    process = Process(address, registration)
    assert "99" in process.wait_for("refused")[1]
    process.client.stop()
    assert gateway.events.empty()


def test_a_wrong_secret_does_not_join(gateway: Gateway, address: str) -> None:
    process = Process(address, secret="wrong")
    time.sleep(0.3)
    process.client.stop()
    assert gateway.events.empty()


def pass_time(gateway: Gateway, seconds: float) -> None:
    """Let time pass for a gateway that checks its leases all along."""
    for _ in range(round(seconds / 0.25)):
        gateway.now += 0.25
        gateway.server.check_leases()


def test_a_silent_member_is_lost_after_its_lease_and_joins_again(
    gateway: Gateway, process: Process
) -> None:
    process.wait_for("accepted")
    gateway.wait_for("heartbeat")
    pass_time(gateway, 61.0)  # in less time than a heartbeat takes to come
    while gateway.server.names():
        pass_time(gateway, 61.0)
    kind, name, reason, lost = gateway.wait_for("leave")
    assert (kind, name, lost) == ("leave", "worker-0", True)
    assert "lease is 60 s" in reason
    process.wait_for("lost")
    assert process.wait_for("accepted") == ("accepted", Accepted(5, 60.0))


def test_a_member_whose_message_is_being_worked_on_is_not_silent(
    gateway: Gateway, address: str
) -> None:
    gateway.answer = lambda _: Accepted(5, 0.3)  # so that heartbeats come soon
    gateway.goes_on.clear()
    process = Process(address)
    assert gateway.is_busy.wait(WAIT_S)
    for _ in range(3):
        gateway.now += 0.1
        gateway.server.check_leases()
    gateway.now += 0.1
    check = threading.Thread(target=gateway.server.check_leases, daemon=True)
    check.start()
    check.join(1.0)
    gateway.now -= 0.4  # for what is asked is how old the judgement is, not what comes next
    gateway.goes_on.set()
    check.join(WAIT_S)
    names = gateway.server.names()
    process.client.stop()
    assert names == ["worker-0"]


@pytest.mark.parametrize("stall_s", [31.0, 600.0, 86_400.0])
def test_time_in_which_the_gateway_itself_stood_still_is_no_silence_of_its_members(
    gateway: Gateway, process: Process, stall_s: float
) -> None:
    process.wait_for("accepted")
    pass_time(gateway, 50.0)
    gateway.now += stall_s
    gateway.server.check_leases()
    pass_time(gateway, 50.0)
    assert gateway.server.names() == ["worker-0"]
    assert process.events.qsize() <= 1, "at most its view came"


def test_a_second_registration_of_a_name_takes_the_place_of_the_first(
    gateway: Gateway, process: Process, address: str
) -> None:
    process.wait_for("accepted")
    second = Process(address)
    second.wait_for("accepted")
    _, name, reason, lost = gateway.wait_for("leave")
    assert (name, lost) == ("worker-0", True)
    assert "again" in reason
    process.client.stop()
    second.client.stop()


def test_a_shutdown_reaches_members_and_ends_their_clients(
    gateway: Gateway, process: Process
) -> None:
    process.wait_for("accepted")
    gateway.server.stop("the run is over")
    assert process.wait_for("shutdown") == ("shutdown", "the run is over")


def test_a_gateway_that_dies_is_lost(gateway: Gateway) -> None:
    server = GrpcServer("127.0.0.1", 0)
    gateway.server.attach(server)
    server.start()
    process = Process(server.address)
    process.wait_for("accepted")
    server.stop(0.0)
    assert server.address in process.wait_for("lost")[1]
    process.client.stop()


def test_a_member_waits_for_a_gateway_that_is_not_up_yet(gateway: Gateway) -> None:
    server = GrpcServer("127.0.0.1", 0)
    process = Process(server.address)
    time.sleep(0.3)
    gateway.server.attach(server)
    server.start()
    process.wait_for("accepted")
    process.client.stop()
    server.stop(0.0)
