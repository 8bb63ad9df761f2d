"""No call to another process waits for ever: each ends with an error that names the peer."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from glinthawk.core.dtype import DType
from glinthawk.core.ids import SequenceId
from glinthawk.core.step import StepKind
from glinthawk.errors import PeerUnavailable
from glinthawk.gateway.control_client import ControlClient
from glinthawk.wire.control import Description, attach_control, fetch_description
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.membership_client import MembershipClient, MembershipOptions
from glinthawk.wire.messages import (
    Accepted,
    AttentionOffer,
    Heartbeat,
    Registration,
    View,
)
from glinthawk.wire.pages import PagesToSend, send_pages
from unit.attention.factories import make_plan
from unit.attention.live_worker import LiveWorker

DEADLINE_S = 0.5
AT_LAST_S = 30.0


@dataclass
class Mute:
    """A process that takes connections and never says a word."""

    listener: socket.socket
    accepted: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> str:
        host, port = self.listener.getsockname()
        return f"{host}:{port}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted.append(connection)


@pytest.fixture
def mute() -> Iterator[Mute]:
    listener = socket.create_server(("127.0.0.1", 0))
    process = Mute(listener)
    thread = threading.Thread(target=process.run)
    thread.start()
    yield process
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(AT_LAST_S)
    for connection in process.accepted:
        connection.close()


def call_in_time(call: threading.Thread) -> None:
    call.start()
    call.join(AT_LAST_S)
    assert not call.is_alive(), "the call still waits"


def test_the_control_api_is_not_waited_for_for_ever(mute: Mute) -> None:
    with (
        ControlClient(f"http://{mute.address}", timeout_s=DEADLINE_S) as client,
        pytest.raises(PeerUnavailable, match=mute.address),
    ):
        client.inspect()


def test_a_description_is_not_waited_for_for_ever(mute: Mute) -> None:
    with pytest.raises(PeerUnavailable, match=mute.address):
        fetch_description(mute.address, timeout_s=DEADLINE_S)


def test_a_handler_that_hangs_holds_its_caller_only_up_to_the_deadline() -> None:
    release = threading.Event()

    def describe() -> Description:
        release.wait(AT_LAST_S)
        return Description("stage", "s", "1")

    server = GrpcServer("127.0.0.1", 0)
    attach_control(server, describe)
    server.start()
    try:
        with pytest.raises(PeerUnavailable, match=server.address):
            fetch_description(server.address, timeout_s=DEADLINE_S)
    finally:
        release.set()
        server.stop(0.0)


@pytest.mark.parametrize("transport", ["auto", "tcp", "grpc"])
def test_a_peer_that_does_not_answer_is_not_dialled_for_ever(mute: Mute, transport: str) -> None:
    options = DialOptions(transport=transport, role="stage", timeout_s=DEADLINE_S)
    with pytest.raises(PeerUnavailable, match=mute.address):
        dial(mute.address, "s", 1, options)


def test_a_copy_that_is_not_answered_is_not_waited_for_for_ever(mute: Mute) -> None:
    order = PagesToSend(1, SequenceId(7), 20, 1, "w1", "127.0.0.1:9", 1)
    with pytest.raises(PeerUnavailable, match=mute.address):
        send_pages(mute.address, order, secret=None, timeout_s=DEADLINE_S)


def test_a_source_gives_a_copy_up_at_its_deadline_when_the_target_is_mute(mute: Mute) -> None:
    source = LiveWorker("w0")
    try:
        source.stage.prefill(make_plan(StepKind.PREFILL, 1, 1, [(7, 0, 20)]))
        left = iter([DEADLINE_S])
        order = source.order_to(mute.address, 7, 20)
        with pytest.raises(PeerUnavailable, match=mute.address):
            source.sender.send(order, lambda: next(left, 0.0))
    finally:
        source.close()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_copy_ends_at_its_deadline_when_a_worker_hangs(victim: int) -> None:
    source, target = LiveWorker("w0"), LiveWorker("w1")
    try:
        source.stage.prefill(make_plan(StepKind.PREFILL, 1, 1, [(7, 0, 20)]))
        (source, target)[victim].stop_computing()
        order = source.order_to(target, 7, 20)
        with pytest.raises(PeerUnavailable):
            send_pages(source.address, order, secret=None, timeout_s=DEADLINE_S)
        until = time.monotonic() + DEADLINE_S
        with pytest.raises(PeerUnavailable):
            source.sender.send(order, lambda: max(0.0, until - time.monotonic()))
    finally:
        source.close()
        target.close()


class Events:
    """Hears of nothing: the gateway is mute."""

    def on_accepted(self, accepted: Accepted) -> None:
        raise AssertionError(accepted)

    def on_view(self, view: View) -> None:
        raise AssertionError(view)

    def on_refused(self, reason: str) -> None:
        raise AssertionError(reason)

    def on_shutdown(self, reason: str) -> None:
        raise AssertionError(reason)

    def on_lost(self, reason: str) -> None:
        raise AssertionError(reason)


def test_a_gateway_that_does_not_answer_is_asked_again_and_can_be_left(mute: Mute) -> None:
    offer = AttentionOffer(1 << 20, (DType.FLOAT32,))
    client = MembershipClient(
        Registration("w", "1", "127.0.0.1:9", offer),
        Events(),
        lambda: Heartbeat({}),
        MembershipOptions(mute.address, backoff_s=0.05, max_backoff_s=0.1, answer_s=DEADLINE_S),
    )
    client.start()
    waited = threading.Event()
    for _ in range(int(AT_LAST_S / 0.1)):
        if len(mute.accepted) >= 2:
            break
        waited.wait(0.1)
    assert len(mute.accepted) >= 2, "it gave up, or hangs in the first call"
    call_in_time(threading.Thread(target=client.stop))
