"""Health and reflection over a real server, in numbers that would fill it."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from glinthawk.wire import grpc_server
from glinthawk.wire.control import Description, attach_control, fetch_description
from glinthawk.wire.grpc_server import GrpcServer, open_channel
from glinthawk.wire.open_services import OpenServices

WAIT_S = 60.0
NUM_THREADS = 4
MAX_WATCHES = 12


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[GrpcServer]:
    """A server of few threads, which anyone can reach."""
    bounds = {"max_watches": MAX_WATCHES, "reflection_s": 1.0}
    monkeypatch.setattr(grpc_server, "OpenServices", lambda: OpenServices(**bounds))  # type: ignore[arg-type]
    server = GrpcServer("127.0.0.1", 0, max_workers=NUM_THREADS)
    attach_control(server, lambda: Description("stage", "s0", "1"))
    server.start()
    yield server
    server.stop(0.0)


@pytest.fixture
def channel(server: GrpcServer) -> Iterator[grpc.Channel]:
    with open_channel(server.address) as channel:
        yield channel


def watch(channel: grpc.Channel) -> Any:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=WAIT_S)


def test_streams_that_watch_take_no_thread_and_are_told_of_changes(
    server: GrpcServer, channel: grpc.Channel
) -> None:
    streams = [watch(channel) for _ in range(MAX_WATCHES)]
    statuses = health_pb2.HealthCheckResponse
    assert [next(stream).status for stream in streams] == [statuses.NOT_SERVING] * MAX_WATCHES
    assert fetch_description(server.address).name == "s0"
    server.set_serving(True)
    assert [next(stream).status for stream in streams] == [statuses.SERVING] * MAX_WATCHES
    for stream in streams:
        stream.cancel()


def test_streams_that_end_while_the_status_changes_stop_nothing(
    server: GrpcServer, channel: grpc.Channel
) -> None:
    ended = threading.Event()

    def change() -> None:
        while not ended.wait(0.002):
            server.set_serving(True)
            server.set_serving(False)

    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    for _ in range(20):
        streams = [watch(channel) for _ in range(MAX_WATCHES // 2)]
        for stream in streams:
            next(stream)
        for stream in streams:
            stream.cancel()
    assert fetch_description(server.address, timeout_s=WAIT_S).name == "s0"
    ended.set()
    changing.join(WAIT_S)
    assert not changing.is_alive()


def test_a_stream_that_does_not_accept_its_status_is_cut_off_and_the_others_are_told() -> None:
    services = OpenServices(send_s=0.2)

    def watch_health(request: str, context: Call, send_response_callback: Any) -> None:
        send_response_callback(f"status of {request}")

    handler = grpc.unary_stream_rpc_method_handler(watch_health)
    behaviour = services.serve("/grpc.health.v1.Health/Watch", handler).unary_stream
    told: queue.Queue[str] = queue.Queue()
    stalled, follower = Call(), Call()
    behaviour("stalled", stalled, send_response_callback=lambda _: stalled.cut_off.wait(WAIT_S))
    behaviour("follower", follower, send_response_callback=told.put)
    assert told.get(timeout=WAIT_S) == "status of follower"
    assert stalled.cut_off.is_set()
    assert not follower.cut_off.is_set()
    services.stop()


class Call:
    """The context of a call whose client may stop reading."""

    def __init__(self) -> None:
        self.cut_off = threading.Event()

    def cancel(self) -> None:
        self.cut_off.set()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return True


def test_there_is_a_bound_to_streams_that_watch(channel: grpc.Channel) -> None:
    streams = [watch(channel) for _ in range(MAX_WATCHES)]
    for stream in streams:
        next(stream)
    with pytest.raises(grpc.RpcError) as refused:
        next(watch(channel))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "use Check" in refused.value.details()
    stub = health_pb2_grpc.HealthStub(channel)
    stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=WAIT_S)
    streams[0].cancel()
    deadline = time.monotonic() + WAIT_S
    while not is_let_in(channel):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for stream in streams:
        stream.cancel()


def is_let_in(channel: grpc.Channel) -> bool:
    stream = watch(channel)
    try:
        next(stream)
    except grpc.RpcError:
        return False
    stream.cancel()
    return True


def test_reflection_streams_that_say_nothing_hold_up_nobody_and_end(
    server: GrpcServer, channel: grpc.Channel
) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    def say_nothing() -> Iterator[Any]:
        time.sleep(WAIT_S)
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    silent = [stub.ServerReflectionInfo(say_nothing()) for _ in range(3 * NUM_THREADS)]
    time.sleep(0.3)
    assert fetch_description(server.address).name == "s0"
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = stub.ServerReflectionInfo(asked, timeout=WAIT_S)
    assert {one.name for one in answer.list_services_response.service} >= {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for stream in silent:
        stream.cancel()
