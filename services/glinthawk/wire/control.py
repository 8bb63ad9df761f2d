"""The Control service: who a process is and how it is doing, for people and the operator."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from glinthawk.errors import InvalidRequest
from glinthawk.wire.failures import translate_rpc_error
from glinthawk.wire.frames import PROTOCOL_VERSION
from glinthawk.wire.grpc_server import GrpcServer, open_channel, secret_metadata
from glinthawk.wire.proto import control_pb2 as pb
from glinthawk.wire.proto import control_pb2_grpc
from glinthawk.wire.stubs import control_stub, register_control

SERVICE = "glinthawk.v1.Control"


@dataclass(frozen=True)
class Description:
    """What a process says of itself; stats are figures that JSON can hold."""

    role: str
    name: str
    version: str
    protocol_version: int = PROTOCOL_VERSION
    stats: Mapping[str, Any] = field(default_factory=dict)


def attach_control(server: GrpcServer, describe: Callable[[], Description]) -> None:
    """Offer the Control service on a process's gRPC server, before that starts."""
    servicer = _ControlServicer(describe)
    server.add(SERVICE, lambda bare: register_control(servicer, bare))


def fetch_description(
    target: str, *, secret: str | None = None, timeout_s: float = 5.0
) -> Description:
    """Ask the process at `target` (host:port) who it is.

    Raises:
        PeerUnavailable: it does not answer.
        InvalidRequest: its answer is not readable.
    """
    with open_channel(target) as channel:
        try:
            reply = control_stub(channel).Describe(
                pb.DescribeRequest(), timeout=timeout_s, metadata=secret_metadata(secret)
            )
        except grpc.RpcError as error:
            raise translate_rpc_error(error, target) from error
    try:
        stats = json.loads(reply.stats_json or "{}")
    except ValueError as error:
        raise InvalidRequest(f"{target} describes itself in bad JSON: {error}") from error
    return Description(reply.role, reply.name, reply.version, reply.protocol_version, stats)


class _ControlServicer(control_pb2_grpc.ControlServicer):
    """Binds the generated interface to the process's description."""

    def __init__(self, describe: Callable[[], Description]) -> None:
        self._describe = describe

    def Describe(self, request: Any, context: grpc.ServicerContext) -> pb.DescribeReply:
        """Tell who this process is."""
        description = self._describe()
        return pb.DescribeReply(
            role=description.role,
            name=description.name,
            version=description.version,
            protocol_version=description.protocol_version,
            stats_json=json.dumps(dict(description.stats)),
        )
