"""The dialling side of the data plane: from a gRPC address to a connection."""

import socket
import time
from dataclasses import dataclass, field

import grpc

from glinthawk.errors import GlinthawkError, InvalidConfig, PeerUnavailable, Unauthenticated
from glinthawk.telemetry.logging import get_logger
from glinthawk.wire.chunks import ChunkQueue
from glinthawk.wire.failures import decode_failure, translate_rpc_error
from glinthawk.wire.frames import PROTOCOL_VERSION, FrameError, FrameHeader, FrameKind
from glinthawk.wire.grpc_server import open_channel, secret_metadata
from glinthawk.wire.grpc_stream import QUEUED_CHUNKS, GrpcConnection, as_messages
from glinthawk.wire.proto import data_pb2 as pb
from glinthawk.wire.stubs import data_stub
from glinthawk.wire.tcp import TcpConnection, TcpOptions, configure_socket, receive_handshake
from glinthawk.wire.time_limit import cut_off_after
from glinthawk.wire.transport import Connection

TRANSPORTS = ("auto", "tcp", "grpc")

_HELLO_REPLY_LIMIT = 1 << 16

_log = get_logger("wire")


@dataclass(frozen=True)
class DialOptions:
    """How to dial.

    transport: ``tcp``, ``grpc``, or ``auto`` for TCP if it passes and gRPC if not. timeout_s:
    for the whole of it; a process that is not up yet is waited for. role: of the dialler.
    secret: of the cluster. credentials: for TLS.
    """

    transport: str = "auto"
    timeout_s: float = 20.0
    role: str = ""
    secret: str | None = None
    credentials: grpc.ChannelCredentials | None = None
    socket: TcpOptions = field(default_factory=TcpOptions)


def dial(target: str, name: str, epoch: int, options: DialOptions | None = None) -> Connection:
    """Return a data connection to the process whose gRPC server is at `target` (host:port).

    Args:
        target: host:port of the other process.
        name: of this process; the other side sees it.
        epoch: of this process's membership.
        options: transport, deadline and secrets.

    Raises:
        PeerUnavailable: it does not answer in time; the message has the address.
        Unauthenticated: the secret is wrong.
        InvalidRequest: it offers no transport that was asked for, or speaks another protocol.
        InvalidConfig: there is no transport of that name.
    """
    options = options or DialOptions()
    if options.transport not in TRANSPORTS:
        raise InvalidConfig(
            f"transport {options.transport!r} is not one of {', '.join(TRANSPORTS)}"
        )
    dialler = _Dialler(target, name, epoch, options)
    if options.transport == "grpc":
        return dialler.dial_grpc()
    if options.transport == "tcp":
        return dialler.dial_tcp()
    try:
        return dialler.dial_auto()
    except _TcpBlocked as error:
        _log.warning("transport_fallback", peer=error.peer, to="grpc", reason=str(error))
        return dialler.dial_grpc()


class _TcpBlocked(PeerUnavailable):
    """TCP was agreed on and does not pass."""

    def __init__(self, peer: str, message: str) -> None:
        super().__init__(message)
        self.peer = peer


class _Dialler:
    """One dialling of one peer, with one deadline over its calls."""

    def __init__(self, target: str, name: str, epoch: int, options: DialOptions) -> None:
        self._target = target
        self._name = name
        self._epoch = epoch
        self._options = options
        self._deadline = time.monotonic() + options.timeout_s

    def dial_tcp(self) -> Connection:
        """Agree on TCP and connect."""
        return self._connect_tcp(self._agree([pb.TRANSPORT_TCP]))

    def dial_auto(self) -> Connection:
        """Take TCP if the peer offers it, gRPC if not."""
        reply = self._agree([pb.TRANSPORT_TCP, pb.TRANSPORT_GRPC])
        if reply.transport == pb.TRANSPORT_TCP:
            return self._connect_tcp(reply)
        return self._connect_grpc(reply)

    def dial_grpc(self) -> Connection:
        """Agree on gRPC and open the stream."""
        return self._connect_grpc(self._agree([pb.TRANSPORT_GRPC]))

    def _agree(self, transports: list[pb.Transport]) -> pb.OpenReply:
        request = pb.OpenRequest(
            name=self._name,
            role=self._options.role,
            epoch=self._epoch,
            transports=transports,
            protocol_version=PROTOCOL_VERSION,
        )
        with open_channel(self._target, self._options.credentials) as channel:
            try:
                reply: pb.OpenReply = data_stub(channel).Open(
                    request,
                    timeout=self._left(),
                    wait_for_ready=True,
                    metadata=secret_metadata(self._options.secret),
                )
            except grpc.RpcError as error:
                raise translate_rpc_error(error, self._target) from error
        return reply

    def _connect_tcp(self, reply: pb.OpenReply) -> Connection:
        host = reply.tcp_host or host_of(self._target)
        options = self._options.socket
        timeout_s = min(self._left(), max(1.0, self._options.timeout_s / 4))
        try:
            sock = socket.create_connection((host, reply.tcp_port), timeout_s)
        except OSError as error:
            raise _TcpBlocked(
                reply.name,
                f"{reply.name} does not answer on TCP at {host} port {reply.tcp_port}: {error}; "
                "open that port or use --transport grpc",
            ) from error
        try:
            configure_socket(sock, options)
            hello = FrameHeader(FrameKind.HELLO, epoch=self._epoch)
            sock.sendall(hello.pack(len(reply.ticket)) + reply.ticket)
            header, payload = receive_handshake(sock, _HELLO_REPLY_LIMIT, timeout_s)
            self._check_welcome(header, payload, reply.name)
        except (OSError, FrameError) as error:
            sock.close()
            raise _TcpBlocked(
                reply.name, f"{reply.name} at {host} did not answer HELLO: {error}"
            ) from error
        except GlinthawkError:
            sock.close()
            raise
        return TcpConnection(sock, reply.name, options)

    def _connect_grpc(self, reply: pb.OpenReply) -> Connection:
        channel = open_channel(self._target, self._options.credentials)
        queue = ChunkQueue(QUEUED_CHUNKS)
        call = data_stub(channel).Exchange(
            as_messages(queue), metadata=secret_metadata(self._options.secret)
        )
        limit = self._options.socket.payload_limit
        connection = GrpcConnection(call, queue, reply.name, channel.close, limit)
        call.add_callback(connection.end_sending)
        try:
            with cut_off_after(self._left(), call.cancel):
                connection.send(FrameHeader(FrameKind.HELLO, epoch=self._epoch), reply.ticket)
                header, payload = connection.receive()
            self._check_welcome(header, bytes(payload), reply.name)
        except GlinthawkError as error:
            connection.close()
            if isinstance(error.__cause__, grpc.RpcError):
                raise translate_rpc_error(error.__cause__, reply.name) from error
            raise
        return connection

    def _check_welcome(self, header: FrameHeader, payload: bytes, peer: str) -> None:
        if header.kind is FrameKind.FAILED:
            raise decode_failure(payload)
        if header.kind is not FrameKind.HELLO_OK:
            raise Unauthenticated(f"{peer} answered HELLO with {header.kind.name}")

    def _left(self) -> float:
        return max(0.1, self._deadline - time.monotonic())


def host_of(target: str) -> str:
    """Return the host of a gRPC target host:port, without scheme and brackets."""
    address = target.rsplit("/", 1)[-1]
    return address.rpartition(":")[0].strip("[]")
