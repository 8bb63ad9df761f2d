"""A stage's connections, over real sockets to members that only accept them."""

import queue
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from glinthawk.errors import PeerUnavailable
from glinthawk.stage.links import StageLinks
from glinthawk.stage.loop import StageLoop
from glinthawk.stage.work import GatewayConnected, GatewayLost, LinkLost, LinkUp, ViewChanged
from glinthawk.telemetry.defects import ThreadDefects
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.frames import FrameHeader, FrameKind
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.messages import Member, Role, View
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

WAIT_S = 60.0


class Loop:
    """Takes events; has no memory left for what workers answer."""

    def __init__(self) -> None:
        self.events: queue.Queue[object] = queue.Queue()

    def post(self, event: object) -> None:
        self.events.put(event)

    def receive_buffer(self, worker: str, header: FrameHeader) -> memoryview | None:
        raise MemoryError

    def next(self) -> object:
        return self.events.get(timeout=WAIT_S)


def answer(connection: Connection, hello: Hello) -> None:
    """What the worker of these tests does: send one frame, and wait for the end."""
    connection.send(FrameHeader(FrameKind.OUTPUT, epoch=hello.epoch), b"12345678")
    with pytest.raises(PeerUnavailable):
        connection.receive()
    connection.close()


@pytest.mark.parametrize("transport", ["tcp", "grpc"])
def test_a_gateway_s_reader_that_ends_by_a_defect_is_a_lost_gateway(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(header: FrameHeader, payload: memoryview) -> None:
        raise MemoryError

    monkeypatch.setattr("glinthawk.stage.links._read_step", fail)
    loop = Loop()
    links = StageLinks(
        "s0", cast(StageLoop, loop), DialOptions(), ServiceMetrics(CollectorRegistry())
    )
    server = GrpcServer("127.0.0.1", 0)
    data = DataServer("s0", links.accept, DataServerOptions(tcp=transport == "tcp"))
    data.attach(server)
    server.start()
    data.start()
    gateway = dial(server.address, "g", 1, DialOptions(transport=transport, role="gateway"))
    connected = loop.next()
    assert isinstance(connected, GatewayConnected)
    gateway.send(FrameHeader(FrameKind.STEP, epoch=1), b"12345678")
    lost = loop.next()
    assert isinstance(lost, GatewayLost)
    assert lost.reason == "a defect (MemoryError)"
    with pytest.raises(PeerUnavailable):
        gateway.receive()
    gateway.close()
    data.stop()
    server.stop(0.0)


@pytest.mark.parametrize("transport", ["tcp", "grpc"])
def test_a_reader_that_ends_by_a_defect_is_a_lost_link(transport: str) -> None:
    server = GrpcServer("127.0.0.1", 0)
    data = DataServer("w0", answer, DataServerOptions(tcp=transport == "tcp"))
    data.attach(server)
    server.start()
    data.start()
    loop = Loop()
    options = DialOptions(transport=transport, role="stage")
    links = StageLinks("s0", cast(StageLoop, loop), options, ServiceMetrics(CollectorRegistry()))
    stage = Member(Role.STAGE, "s0", "127.0.0.1:1", 0, 4, 1)
    worker = Member(Role.ATTENTION, "w0", server.address, epoch=2)
    with ThreadDefects() as defects:
        links.follow(View(3, (stage,), (worker,)))
        assert isinstance(loop.next(), ViewChanged)
        assert isinstance(loop.next(), LinkUp)
        lost = loop.next()
    assert isinstance(lost, LinkLost)
    assert lost.member == worker
    assert "'w0' went away: a defect (MemoryError)" in str(lost.error)
    assert defects.failure is None
    links.close()
    data.stop()
    server.stop(0.0)
