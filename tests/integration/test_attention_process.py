"""An attention worker as a real process, with a gateway and a stage that the test plays."""

import os
import queue
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from glinthawk.attention.frame import Frame
from glinthawk.attention.worker import AttentionWorker
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.step import StepKind
from glinthawk.wire.control import fetch_description
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.frames import FrameKind
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.membership_server import MembershipServer
from glinthawk.wire.messages import (
    Accepted,
    AttentionOffer,
    Heartbeat,
    Member,
    Refused,
    Registration,
    Role,
    Shutdown,
    View,
)
from glinthawk.wire.transport import Connection
from unit.attention.factories import (
    EPOCH,
    GEOMETRY,
    Q_COLUMNS,
    WORKER,
    Stage,
    expected_output,
    make_plan,
    read_rows,
)

WAIT_S = 120.0
LEASE_S = 8.0


class Gateway:
    """A gateway that tells one view to whoever joins, and keeps what it learns."""

    def __init__(self, *, epoch: int = EPOCH, port: int = 0) -> None:
        self.epoch = epoch
        self.geometry: KVGeometry = GEOMETRY
        self.refusal: str | None = None
        self.drain_s: float | None = None
        self.lets_go = True
        self.joined: queue.Queue[Registration] = queue.Queue()
        self.left: queue.Queue[tuple[str, bool]] = queue.Queue()
        self.figures: dict[str, float] = {}
        self.grpc = GrpcServer("127.0.0.1", port)
        self.membership = MembershipServer(self)
        self.membership.attach(self.grpc)
        self.grpc.start()
        self.membership.start()

    def stop(self) -> None:
        self.membership.stop("the test's run is over")
        self.grpc.stop(0.5)

    def on_join(self, registration: Registration) -> Accepted | Refused:
        if self.refusal is not None:
            return Refused(self.refusal)
        return Accepted(self.epoch, LEASE_S)

    def on_joined(self, registration: Registration) -> None:
        member = Member(Role.ATTENTION, registration.name, registration.address, epoch=self.epoch)
        self.membership.broadcast(View(self.epoch + 1, (), (member,), self.geometry))
        self.joined.put(registration)

    def on_heartbeat(self, name: str, heartbeat: Heartbeat) -> None:
        self.figures = dict(heartbeat.stats)
        self.drain_s = heartbeat.drain_s
        if heartbeat.drain_s is not None and self.lets_go:
            self.membership.send(name, Shutdown("it is drained"))

    def on_leave(self, name: str, reason: str, lost: bool) -> None:
        self.left.put((name, lost))


class Process:
    """The worker's process; `log` is its standard error."""

    def __init__(self, gateway: str, log: Path, *arguments: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "glinthawk", "attention", "--gateway", gateway]
        command += ["--name", WORKER, "--threads", "1", "--log-format", "json", *arguments]
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ
            )

    def wait(self) -> int:
        return self.popen.wait(WAIT_S)

    def text(self) -> str:
        return self.log.read_text()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.stop()


@contextmanager
def running(gateway: Gateway, log: Path, *arguments: str) -> Iterator[Process]:
    memory = ("--kv-memory", str(64 * GEOMETRY.page_bytes))
    process = Process(gateway.grpc.address, log, *memory, *arguments)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()


Connect = Callable[..., Connection]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Dials a worker as a stage does."""
    opened: list[Connection] = []

    def dial_worker(registration: Registration, transport: str = "auto") -> Connection:
        options = DialOptions(transport=transport, role="stage")
        opened.append(dial(registration.address, "stage-0", EPOCH, options))
        return opened[-1]

    yield dial_worker
    for connection in opened:
        connection.close()


class Remote:
    """Stands for the core in `Stage`, and sends its frames over a connection.

    STORE gets no answer; all others are answered before the next frame is sent.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def handle(self, frame: Frame) -> None:
        self._connection.send(frame.header, frame.payload)
        if frame.header.kind is not FrameKind.STORE:
            header, payload = self._connection.receive()
            frame.replies.post(header, bytes(payload))


def make_stage(connection: Connection) -> Stage:
    core: AttentionWorker | Remote = Remote(connection)
    return Stage(core)  # type: ignore[arg-type]


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.05)


@pytest.mark.parametrize("transport", ["tcp", "grpc"])
def test_a_worker_joins_serves_attention_and_ends_cleanly(
    gateway: Gateway, connect: Connect, tmp_path: Path, transport: str
) -> None:
    with running(gateway, tmp_path / "log", "--transport", transport) as process:
        registration = gateway.joined.get(timeout=WAIT_S)
        assert isinstance(registration.offer, AttentionOffer)
        assert registration.offer.kv_memory_bytes == 64 * GEOMETRY.page_bytes
        assert (registration.tcp_port > 0) == (transport == "tcp")
        connection = connect(registration, transport)
        stage = make_stage(connection)
        stage.prefill(make_plan(StepKind.PREFILL, 1, 1, [(7, 0, 30), (8, 0, 3)]))
        plan = make_plan(StepKind.DECODE, 2, 2, [(7, 30, 1), (8, 3, 1)])
        for layer, output in enumerate(stage.decode(plan)):
            tokens = [[(7, p) for p in range(31)], [(8, p) for p in range(4)]]
            expected = np.stack([expected_output(history, layer) for history in tokens])
            np.testing.assert_allclose(output, expected, atol=2e-5)
        used = 3 * GEOMETRY.page_bytes
        wait_until(lambda: gateway.figures.get("kv_used_bytes") == used, "the heartbeat's KV")
        described = fetch_description(registration.address)
        assert (described.role, described.name) == ("attention", WORKER)
        assert described.stats["kv_capacity_bytes"] == 64 * GEOMETRY.page_bytes
        check_health(registration.address)
        connection.close()
        wait_until(lambda: '"peer_lost"' in process.text(), "the log of the lost stage")
        process.popen.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert gateway.left.get(timeout=WAIT_S) == (WORKER, False)


def check_health(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_many_frames_that_nobody_awaits_are_all_answered_in_order(
    gateway: Gateway, connect: Connect, tmp_path: Path
) -> None:
    with running(gateway, tmp_path / "log"):
        registration = gateway.joined.get(timeout=WAIT_S)
        connection = connect(registration)
        stage = make_stage(connection)
        stage.prefill(make_plan(StepKind.PREFILL, 1, 1, [(7, 0, 30)]))
        plan = make_plan(StepKind.DECODE, 2, 2, [(7, 30, 1)])
        expected = stage.decode(plan)
        frame = stage.frame(FrameKind.ATTEND, plan, 2)
        for _ in range(500):
            connection.send(frame.header, frame.payload)
        for _ in range(500):
            header, payload = connection.receive()
            assert header.kind is FrameKind.OUTPUT
            rows = read_rows(bytes(payload), stage.dtype, Q_COLUMNS)
            np.testing.assert_array_equal(rows, expected[2])


def test_metrics_tell_what_was_done(gateway: Gateway, connect: Connect, tmp_path: Path) -> None:
    with running(gateway, tmp_path / "log") as process:
        registration = gateway.joined.get(timeout=WAIT_S)
        connection = connect(registration)
        stage = make_stage(connection)
        stage.prefill(make_plan(StepKind.PREFILL, 1, 1, [(7, 0, 30)]))
        stage.decode(make_plan(StepKind.DECODE, 2, 2, [(7, 30, 1)]))
        stale = stage.frame(FrameKind.COMPOSE, make_plan(StepKind.RELEASE, 1, 3), epoch=EPOCH - 1)
        connection.send(stale.header, stale.payload)
        stage.attend(make_plan(StepKind.DECODE, 2, 2, [(7, 30, 1)]), 2)
        port = next(
            line.split('"metrics_port": ')[1].split(",")[0].rstrip("}")
            for line in process.text().splitlines()
            if '"metrics_port"' in line
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as reply:
            text = reply.read().decode()
        assert f"glinthawk_kv_used_bytes {2 * GEOMETRY.page_bytes:.1f}" in text
        assert "glinthawk_attention_seconds_count 4.0" in text
        assert "glinthawk_batch_rows_count 4.0" in text
        assert "glinthawk_dropped_frames_total 1.0" in text


def test_a_worker_ends_with_a_gateway_that_started_it(gateway: Gateway, tmp_path: Path) -> None:
    with running(gateway, tmp_path / "log", "--exit-with-parent") as process:
        gateway.joined.get(timeout=WAIT_S)
        gateway.stop()
        assert process.wait() == 0


def test_a_worker_joins_the_next_gateway_with_an_empty_cache(
    gateway: Gateway, connect: Connect, tmp_path: Path
) -> None:
    with running(gateway, tmp_path / "log") as process:
        registration = gateway.joined.get(timeout=WAIT_S)
        connection = connect(registration)
        make_stage(connection).prefill(make_plan(StepKind.PREFILL, 1, 1, [(7, 0, 30)]))
        port = gateway.grpc.port
        gateway.stop()
        second = Gateway(epoch=1, port=port)
        try:
            assert second.joined.get(timeout=WAIT_S).name == WORKER
            wait_until(lambda: "kv_used_bytes" in second.figures, "a heartbeat")
            assert second.figures["kv_used_bytes"] == 0
        finally:
            second.stop()
        process.popen.send_signal(signal.SIGINT)
        assert process.wait() == 0


def test_a_worker_asked_to_end_stays_until_the_gateway_lets_it_go(
    gateway: Gateway, tmp_path: Path
) -> None:
    gateway.lets_go = False
    with running(gateway, tmp_path / "log", "--drain-timeout-s", "1000") as process:
        wait_until(lambda: '"joined"' in process.text(), "the membership")
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: gateway.drain_s is not None, "the wish to leave")
        assert gateway.drain_s is not None
        assert 900 < gateway.drain_s <= 1000
        assert process.popen.poll() is None
        gateway.membership.send(WORKER, Shutdown("it is drained"))
        assert process.wait() == 0


def test_a_second_signal_and_a_wait_of_nothing_end_a_worker_at_once(
    gateway: Gateway, tmp_path: Path
) -> None:
    gateway.lets_go = False
    with running(gateway, tmp_path / "log", "--drain-timeout-s", "1000") as process:
        wait_until(lambda: '"joined"' in process.text(), "the membership")
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: gateway.drain_s is not None, "the wish to leave")
        process.popen.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    with running(gateway, tmp_path / "log", "--drain-timeout-s", "0") as process:
        wait_until(lambda: '"joined"' in process.text(), "the membership")
        process.popen.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_refused_worker_ends_with_the_reason(gateway: Gateway, tmp_path: Path) -> None:
    gateway.refusal = "no room for you"
    with running(gateway, tmp_path / "log") as process:
        assert process.wait() == 1
        assert "no room for you" in process.text()


def test_memory_below_one_page_ends_the_worker_with_both_sizes(
    gateway: Gateway, tmp_path: Path
) -> None:
    with running(gateway, tmp_path / "log", "--kv-memory", "1000") as process:
        assert process.wait() == 1
        assert "1000 bytes" in process.text()
        assert f"{GEOMETRY.page_bytes} bytes" in process.text()


def test_no_torch_is_loaded() -> None:
    code = "import sys, glinthawk.attention.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
