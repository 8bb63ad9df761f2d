"""Every error of the tree crosses a process boundary and comes back as itself."""

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from glinthawk import errors
from glinthawk.wire.control import Description, attach_control, fetch_description
from glinthawk.wire.failures import STATUS_OF, decode_failure, encode_failure, translate_rpc_error
from glinthawk.wire.frames import FrameError
from glinthawk.wire.grpc_server import GrpcServer, open_channel


def tree() -> list[type[errors.GlinthawkError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, errors.GlinthawkError)][1:]


DOCUMENTED = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.CapacityExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PeerUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.StateLost: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InvariantBroken: grpc.StatusCode.INTERNAL,
}


class Failing:
    """A process whose description raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception = errors.NotFound("unset")

    def describe(self) -> Description:
        raise self.error


@pytest.fixture(scope="module")
def failing() -> Iterator[tuple[Failing, str]]:
    process = Failing()
    server = GrpcServer("127.0.0.1", 0)
    attach_control(server, process.describe)
    server.start()
    yield process, server.address
    server.stop(0.0)


def test_the_table_has_every_error_of_the_tree_and_no_number_twice() -> None:
    assert set(STATUS_OF) == set(tree())
    assert len({number for number, _ in STATUS_OF.values()}) == len(STATUS_OF)


@pytest.mark.parametrize(("kind", "status"), DOCUMENTED.items())
def test_status_codes_are_those_the_tree_documents(
    kind: type[errors.GlinthawkError], status: grpc.StatusCode
) -> None:
    assert STATUS_OF[kind][1] is status


@pytest.mark.parametrize("kind", tree())
def test_an_error_comes_back_from_a_failed_frame(kind: type[errors.GlinthawkError]) -> None:
    error = decode_failure(encode_failure(kind("what, value, limit – way out")))
    assert type(error) is kind
    assert str(error) == "what, value, limit – way out"


@pytest.mark.parametrize("kind", tree())
def test_an_error_comes_back_from_a_call(
    kind: type[errors.GlinthawkError], failing: tuple[Failing, str]
) -> None:
    process, address = failing
    process.error = kind("what, value, limit – way out")
    with pytest.raises(kind, match="what, value, limit – way out") as caught:
        fetch_description(address)
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, grpc.Call)
    assert caught.value.__cause__.code() is STATUS_OF[kind][1]


def test_a_subclass_outside_the_tree_travels_as_its_ancestor() -> None:
    assert type(decode_failure(encode_failure(FrameError("x")))) is errors.InvalidRequest


def test_a_defect_is_internal_and_its_text_stays_in_the_log(failing: tuple[Failing, str]) -> None:
    process, address = failing
    process.error = RuntimeError("secret detail")
    with pytest.raises(errors.InvariantBroken, match="RuntimeError") as caught:
        fetch_description(address)
    assert "secret detail" not in str(caught.value)


def test_a_process_that_is_not_there_is_unavailable() -> None:
    server = GrpcServer("127.0.0.1", 0)
    address = server.address
    server.start()
    server.stop(0.0)
    with pytest.raises(errors.PeerUnavailable, match=address):
        fetch_description(address)


def test_a_foreign_error_names_the_peer() -> None:
    assert "worker-3" in str(translate_rpc_error(grpc.RpcError("gone"), "worker-3"))


def test_health_follows_the_process_and_reflection_lists_its_services() -> None:
    server = GrpcServer("127.0.0.1", 0, secret="cluster")
    attach_control(server, lambda: Description("stage", "s0", "1", stats={"rows": 3}))
    server.start()
    try:
        with open_channel(server.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            request = health_pb2.HealthCheckRequest(service="glinthawk.v1.Control")
            assert check(request, timeout=5).status == health_pb2.HealthCheckResponse.NOT_SERVING
            server.set_serving(True)
            assert check(request, timeout=5).status == health_pb2.HealthCheckResponse.SERVING
            info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            query = reflection_pb2.ServerReflectionRequest(list_services="")
            reply = next(iter(info(iter([query]), timeout=5)))
            names = {service.name for service in reply.list_services_response.service}
        assert {"glinthawk.v1.Control", "grpc.health.v1.Health"} <= names
        with pytest.raises(errors.Unauthenticated):
            fetch_description(server.address)
        description = fetch_description(server.address, secret="cluster")
        assert description == Description("stage", "s0", "1", stats={"rows": 3})
    finally:
        server.stop(0.0)


def test_a_port_in_use_is_refused_with_its_address() -> None:
    server = GrpcServer("127.0.0.1", 0)
    server.start()
    try:
        with pytest.raises(errors.InvalidConfig, match=str(server.port)):
            GrpcServer("127.0.0.1", server.port)
    finally:
        server.stop(0.0)
