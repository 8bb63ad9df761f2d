"""One suite over every transport: what `Connection` promises."""

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from glinthawk.errors import InvalidRequest, PeerUnavailable, Unauthenticated
from glinthawk.telemetry.defects import ThreadDefects
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.frames import FrameError, FrameHeader, FrameKind
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.tcp import TcpOptions
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

LIMIT = 64 << 20
WAIT_S = 120.0


@dataclass
class Service:
    """A process's accepting side; accepted connections arrive in `accepted`."""

    server: GrpcServer
    data: DataServer
    accepted: "queue.Queue[tuple[Connection, Hello]]"

    def stop(self) -> None:
        self.data.stop()
        self.server.stop(0.0)


def start_service(*, secret: str | None = None, **options: object) -> Service:
    accepted: queue.Queue[tuple[Connection, Hello]] = queue.Queue()
    settings = DataServerOptions(
        socket=TcpOptions(payload_limit=LIMIT),
        **options,  # type: ignore[arg-type]
    )
    data = DataServer("listener", lambda *pair: accepted.put(pair), settings)
    server = GrpcServer("127.0.0.1", 0, secret=secret)
    data.attach(server)
    server.start()
    data.start()
    return Service(server, data, accepted)


def take_hello(service: Service) -> Hello:
    connection, hello = service.accepted.get(timeout=WAIT_S)
    connection.close()
    return hello


def options_for(transport: str, secret: str | None = None) -> DialOptions:
    return DialOptions(
        transport=transport,
        timeout_s=WAIT_S,
        role="stage",
        secret=secret,
        socket=TcpOptions(payload_limit=LIMIT),
    )


@pytest.fixture(params=["tcp", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service() -> Iterator[Service]:
    service = start_service()
    yield service
    service.stop()


@dataclass
class Pair:
    near: Connection
    far: Connection
    hello: Hello


@pytest.fixture
def pair(service: Service, transport: str) -> Iterator[Pair]:
    near = dial(service.server.address, "dialler", 7, options_for(transport))
    far, hello = service.accepted.get(timeout=WAIT_S)
    yield Pair(near, far, hello)
    near.close()
    far.close()


def run_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_both_ends_know_each_other(pair: Pair, transport: str) -> None:
    assert pair.near.peer == "listener"
    assert pair.far.peer == "dialler"
    assert pair.hello == Hello("dialler", "stage", 7, transport)


def test_frames_arrive_in_order_with_header_and_payload(pair: Pair) -> None:
    rng = np.random.default_rng(1)
    sent = [rng.bytes(int(size)) for size in rng.integers(0, 5000, 300)]

    def send_all() -> None:
        for step, payload in enumerate(sent):
            pair.near.send(FrameHeader(FrameKind.STEP, 7, 3, step, 9, 2), payload)

    sender = run_thread(send_all)
    for step, payload in enumerate(sent):
        header, received = pair.far.receive()
        assert header == FrameHeader(FrameKind.STEP, 7, 3, step, 9, 2, payload_bytes=len(payload))
        assert bytes(received) == payload
    sender.join(WAIT_S)


def test_several_buffers_arrive_as_one_payload(pair: Pair) -> None:
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    pair.far.send(FrameHeader(FrameKind.OUTPUT), b"ab", np.zeros((0, 4)), rows, bytearray(b"c"))
    _, payload = pair.near.receive()
    assert bytes(payload) == b"ab" + rows.tobytes() + b"c"


def test_more_buffers_than_one_system_call_takes(pair: Pair) -> None:
    parts = [bytes([index % 251]) * 3 for index in range(3000)]
    sender = run_thread(lambda: pair.near.send(FrameHeader(FrameKind.STORE), *parts))
    assert bytes(pair.far.receive()[1]) == b"".join(parts)
    sender.join(WAIT_S)


def test_a_large_frame_lands_in_the_receivers_own_buffer(pair: Pair) -> None:
    payload = np.random.default_rng(2).integers(0, 256, 40 << 20, np.uint8)
    target = np.zeros(len(payload) + 5, np.uint8)
    sender = run_thread(lambda: pair.near.send(FrameHeader(FrameKind.STORE), payload))
    header, view = pair.far.receive(lambda header: target)
    sender.join(WAIT_S)
    assert header.payload_bytes == len(view) == len(payload)
    assert np.array_equal(target[:-5], payload)
    assert not target[-5:].any()


def test_concurrent_senders_do_not_mix_their_frames(pair: Pair) -> None:
    def send_many(lane: int) -> None:
        for step in range(50):
            size = 1 + (lane * 7919 + step * 104729) % 200_000
            pair.near.send(
                FrameHeader(FrameKind.ATTEND, lane=lane, step=step), bytes([lane]) * size
            )

    threads = [run_thread(lambda lane=lane: send_many(lane)) for lane in range(4)]
    steps: dict[int, list[int]] = {lane: [] for lane in range(4)}
    for _ in range(200):
        header, payload = pair.far.receive()
        assert set(payload.tobytes()) == {header.lane}
        steps[header.lane].append(header.step)
    assert all(order == list(range(50)) for order in steps.values())
    for thread in threads:
        thread.join(WAIT_S)


def test_both_directions_at_once(pair: Pair) -> None:
    payload = bytes(1 << 20)

    def echo() -> None:
        for _ in range(20):
            header, received = pair.far.receive()
            pair.far.send(header, received)

    def send_all() -> None:
        for step in range(20):
            pair.near.send(FrameHeader(FrameKind.ATTEND, step=step), payload)

    threads = [run_thread(echo), run_thread(send_all)]
    assert [pair.near.receive()[0].step for _ in range(20)] == list(range(20))
    for thread in threads:
        thread.join(WAIT_S)


@pytest.mark.parametrize("side", ["near", "far"])
def test_close_wakes_a_receiver_on_either_side(pair: Pair, side: str) -> None:
    failures: queue.Queue[str] = queue.Queue()

    def receive(connection: Connection) -> None:
        with pytest.raises(PeerUnavailable) as caught:
            connection.receive()
        failures.put(str(caught.value))

    run_thread(lambda: receive(pair.near))
    run_thread(lambda: receive(pair.far))
    time.sleep(0.1)
    getattr(pair, side).close()
    messages = {failures.get(timeout=WAIT_S), failures.get(timeout=WAIT_S)}
    assert any("listener" in message for message in messages)
    assert any("dialler" in message for message in messages)


def test_close_wakes_a_sender_whose_peer_does_not_read(pair: Pair) -> None:
    failures: queue.Queue[str] = queue.Queue()

    def send_until_closed() -> None:
        try:
            while True:
                pair.near.send(FrameHeader(FrameKind.STORE), bytes(8 << 20))
        except PeerUnavailable as error:
            failures.put(str(error))

    run_thread(send_until_closed)
    time.sleep(0.5)
    pair.near.close()
    assert "listener" in failures.get(timeout=WAIT_S)


def test_a_peer_that_closes_is_named_by_sender_and_receiver(pair: Pair) -> None:
    pair.far.close()
    with pytest.raises(PeerUnavailable, match="listener"):
        pair.near.receive()
    with pytest.raises(PeerUnavailable, match="listener"):
        pair.near.send(FrameHeader(FrameKind.STEP))


def test_what_was_sent_before_a_close_still_arrives(pair: Pair) -> None:
    pair.far.send(FrameHeader(FrameKind.FAILED, step=5), b"why")
    pair.far.close()
    header, payload = pair.near.receive()
    assert (header.step, bytes(payload)) == (5, b"why")
    with pytest.raises(PeerUnavailable):
        pair.near.receive()


def test_a_payload_above_the_limit_is_not_sent(pair: Pair) -> None:
    with pytest.raises(FrameError, match=str(LIMIT)):
        pair.near.send(FrameHeader(FrameKind.STORE), np.zeros(LIMIT + 1, np.uint8))
    pair.near.send(FrameHeader(FrameKind.STEP, step=1))
    assert pair.far.receive()[0].step == 1


def test_close_twice_is_fine(pair: Pair) -> None:
    pair.near.close()
    pair.near.close()


def test_a_wrong_ticket_is_refused(service: Service, transport: str) -> None:
    service.data._tickets.issue = lambda hello: bytes(32)  # type: ignore[method-assign]
    with pytest.raises(Unauthenticated, match="ticket"):
        dial(service.server.address, "dialler", 1, options_for(transport))
    assert service.accepted.empty()


def test_a_replayed_ticket_is_refused(service: Service, transport: str) -> None:
    tickets: list[bytes] = []
    issue = service.data._tickets.issue

    def issue_once(hello: Hello) -> bytes:
        tickets.append(issue(hello) if not tickets else tickets[0])
        return tickets[0]

    service.data._tickets.issue = issue_once  # type: ignore[method-assign]
    dial(service.server.address, "dialler", 1, options_for(transport)).close()
    with pytest.raises(Unauthenticated, match="used"):
        dial(service.server.address, "dialler", 1, options_for(transport))


def test_the_cluster_secret_is_asked_for(transport: str) -> None:
    service = start_service(secret="right")
    try:
        for secret in (None, "wrong"):
            with pytest.raises(Unauthenticated, match="secret"):
                dial(service.server.address, "dialler", 1, options_for(transport, secret))
        dial(service.server.address, "dialler", 1, options_for(transport, "right")).close()
    finally:
        service.stop()


OTHER_PROCESS = """
import sys, time
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.grpc_server import GrpcServer

data = DataServer("victim", lambda connection, hello: time.sleep(600), DataServerOptions())
server = GrpcServer("127.0.0.1", 0)
data.attach(server)
server.start()
data.start()
print(server.address, flush=True)
time.sleep(600)
"""


def test_a_killed_process_is_named(transport: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            connection = dial(address, "dialler", 1, options_for(transport))
        finally:
            process.kill()
    with pytest.raises(PeerUnavailable, match="victim"):
        connection.receive()
    with pytest.raises(PeerUnavailable, match="victim"):
        connection.send(FrameHeader(FrameKind.STEP))
    connection.close()


def test_stopping_the_server_closes_accepted_connections(pair: Pair, service: Service) -> None:
    service.stop()
    with pytest.raises(PeerUnavailable, match="listener"):
        pair.near.receive()


def test_auto_prefers_tcp(service: Service) -> None:
    dial(service.server.address, "dialler", 1, options_for("auto")).close()
    assert take_hello(service).transport == "tcp"


def test_auto_falls_back_to_grpc_where_tcp_does_not_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        closed_port = placeholder.getsockname()[1]
    service = start_service()
    try:
        listener = service.data._listener
        service.data._listener = _Elsewhere(closed_port)  # type: ignore[assignment]
        dial(service.server.address, "dialler", 1, options_for("auto")).close()
        assert take_hello(service).transport == "grpc"
        with pytest.raises(PeerUnavailable, match=str(closed_port)):
            dial(service.server.address, "dialler", 1, options_for("tcp"))
        service.data._listener = listener
    finally:
        service.stop()


class _Elsewhere:
    def __init__(self, port: int) -> None:
        self._port = port

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", self._port)


def test_a_server_without_tcp_is_reached_over_grpc() -> None:
    service = start_service(tcp=False)
    try:
        dial(service.server.address, "dialler", 1, options_for("auto")).close()
        assert take_hello(service).transport == "grpc"
        with pytest.raises(InvalidRequest, match="--transport"):
            dial(service.server.address, "dialler", 1, options_for("tcp"))
    finally:
        service.stop()


def test_a_tcp_connection_without_hello_is_dropped_in_time() -> None:
    service = start_service(hello_timeout_s=0.3)
    try:
        address = ("127.0.0.1", service.data.tcp_port)
        with socket.create_connection(address, WAIT_S) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(address, WAIT_S) as garbage:
            garbage.sendall(b"GET / HTTP/1.1\r\nHost: nobody-at-all-but-forty-eight-bytes\r\n\r\n")
            assert read_to_end(garbage) == b""
        assert service.accepted.empty()
    finally:
        service.stop()


def test_connections_without_hello_are_limited() -> None:
    service = start_service(hello_timeout_s=2 * WAIT_S, max_unauthenticated=2)
    address = ("127.0.0.1", service.data.tcp_port)
    try:
        with (
            socket.create_connection(address, WAIT_S),
            socket.create_connection(address, WAIT_S),
            socket.create_connection(address, WAIT_S) as third,
        ):
            assert read_to_end(third) == b""
    finally:
        service.stop()


def test_a_defect_of_a_handler_ends_its_connection_and_nothing_else(transport: str) -> None:
    service = start_service()
    accept = service.accepted.put

    def handle(connection: Connection, hello: Hello) -> None:
        if hello.name == "unlucky":
            raise ValueError("a defect")
        accept((connection, hello))

    service.data._handler = handle
    with ThreadDefects() as defects:
        unlucky = dial(service.server.address, "unlucky", 7, options_for(transport))
        with pytest.raises(PeerUnavailable):
            unlucky.receive()
        unlucky.close()
        other = dial(service.server.address, "other", 7, options_for(transport))
        assert take_hello(service).name == "other"
        other.close()
    assert defects.failure is None
    service.stop()


def test_dialling_nobody_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        target = f"127.0.0.1:{placeholder.getsockname()[1]}"
    with pytest.raises(PeerUnavailable, match=target):
        dial(target, "dialler", 1, DialOptions(timeout_s=0.5))


def read_to_end(sock: socket.socket) -> bytes:
    try:
        return b"".join(iter(lambda: sock.recv(4096), b""))
    except ConnectionResetError:
        return b""
