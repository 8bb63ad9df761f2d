"""The accepting side of the data plane: Data.Open, Data.Exchange and the TCP listener."""

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from glinthawk.errors import (
    CapacityExceeded,
    GlinthawkError,
    InvalidConfig,
    InvalidRequest,
    PeerUnavailable,
    Unauthenticated,
)
from glinthawk.telemetry.logging import get_logger
from glinthawk.wire.chunks import ChunkQueue
from glinthawk.wire.failures import encode_failure
from glinthawk.wire.frames import PROTOCOL_VERSION, FrameError, FrameHeader, FrameKind
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.grpc_stream import QUEUED_CHUNKS, GrpcConnection, as_messages
from glinthawk.wire.proto import data_pb2 as pb
from glinthawk.wire.proto import data_pb2_grpc
from glinthawk.wire.stubs import register_data
from glinthawk.wire.tcp import TcpConnection, TcpOptions, configure_socket, receive_handshake
from glinthawk.wire.tickets import TICKET_BYTES, Hello, TicketBook
from glinthawk.wire.time_limit import cut_off_after
from glinthawk.wire.transport import Connection

SERVICE = "glinthawk.v1.Data"

Handler = Callable[[Connection, Hello], None]
"""Gets each accepted connection, on a thread of its own, and owns it from then on. If it
raises, the connection is closed; if it returns, it is not."""

_TCP = "tcp"
_GRPC = "grpc"
_TRANSPORTS: dict[int, str] = {pb.TRANSPORT_TCP: _TCP, pb.TRANSPORT_GRPC: _GRPC}

_log = get_logger("wire")


@dataclass(frozen=True)
class DataServerOptions:
    """Settings of the accepting side.

    tcp: whether to offer TCP; tcp_port 0 takes a free one. advertised_host: where peers reach
    the TCP port; None for the host that they dialled. hello_timeout_s: a connection without a
    valid HELLO is dropped after so long. max_unauthenticated: connections at once that have
    not shown their ticket yet.
    """

    tcp: bool = True
    tcp_host: str = "127.0.0.1"
    tcp_port: int = 0
    advertised_host: str | None = None
    hello_timeout_s: float = 5.0
    ticket_lifetime_s: float = 10.0
    max_unauthenticated: int = 32
    socket: TcpOptions = field(default_factory=TcpOptions)


class DataServer:
    """Serves the data plane of one process; `name` is what peers are told.

    Use: create it, `attach` it to the process's GrpcServer, `start`, and `stop` at the end.
    """

    def __init__(
        self,
        name: str,
        handler: Handler,
        options: DataServerOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._handler = handler
        self._options = options
        self._tickets = TicketBook(clock, lifetime_s=options.ticket_lifetime_s)
        self._unauthenticated = threading.BoundedSemaphore(options.max_unauthenticated)
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._stopping = False
        self._listener = self._listen() if options.tcp else None
        self._acceptor = threading.Thread(target=self._accept, name="data-accept", daemon=True)

    @property
    def tcp_port(self) -> int:
        """Port of the TCP listener, 0 without one."""
        return 0 if self._listener is None else int(self._listener.getsockname()[1])

    def attach(self, server: GrpcServer) -> None:
        """Offer the Data service on the process's gRPC server, before that starts."""
        servicer = _DataServicer(self._open, self._exchange)
        server.add(SERVICE, lambda bare: register_data(servicer, bare))

    def start(self) -> None:
        """Accept TCP connections."""
        if self._listener is not None:
            self._acceptor.start()

    def stop(self) -> None:
        """Accept nothing more and close every connection that is still open."""
        with self._lock:
            self._stopping = True
            connections = list(self._connections)
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            if self._acceptor.is_alive():
                self._acceptor.join(1.0)
            self._listener.close()
        for connection in connections:
            connection.close()

    def _listen(self) -> socket.socket:
        options = self._options
        family = socket.AF_INET6 if ":" in options.tcp_host else socket.AF_INET
        try:
            return socket.create_server(
                (options.tcp_host, options.tcp_port), family=family, backlog=128
            )
        except OSError as error:
            raise InvalidConfig(
                f"cannot listen on {options.tcp_host} port {options.tcp_port} for data: {error}; "
                "choose a free port or 0"
            ) from error

    def _open(self, request: pb.OpenRequest) -> pb.OpenReply:
        if request.protocol_version != PROTOCOL_VERSION:
            raise InvalidRequest(
                f"{request.name} speaks protocol {request.protocol_version}, {self._name} speaks "
                f"{PROTOCOL_VERSION}: run the same release everywhere"
            )
        for number in request.transports:
            transport = _TRANSPORTS.get(number)
            if transport == _GRPC or (transport == _TCP and self._listener is not None):
                hello = Hello(request.name, request.role, request.epoch, transport)
                return pb.OpenReply(
                    transport=number,
                    ticket=self._tickets.issue(hello),
                    tcp_host=self._options.advertised_host or "",
                    tcp_port=self.tcp_port,
                    name=self._name,
                )
        raise InvalidRequest(
            f"{self._name} offers none of the transports that {request.name} asks for: "
            "use --transport auto or grpc"
        )

    def _exchange(self, incoming: Iterator[pb.Chunk], context: Any) -> Iterator[pb.Chunk]:
        limit = self._options.socket.payload_limit
        queue = ChunkQueue(QUEUED_CHUNKS)
        connection = GrpcConnection(incoming, queue, "an unknown peer", context.cancel, limit)
        context.add_callback(connection.end_sending)
        if not self._unauthenticated.acquire(blocking=False):
            raise CapacityExceeded("too many data connections without HELLO: try again")
        try:
            with cut_off_after(self._options.hello_timeout_s, context.cancel):
                header, payload = connection.receive(_small_buffer)
            hello = self._check_hello(header, bytes(payload), _GRPC)
        finally:
            self._unauthenticated.release()
        connection.rename(hello.name)
        connection.send(FrameHeader(FrameKind.HELLO_OK, epoch=hello.epoch))
        self._hand_over(connection, hello)
        yield from as_messages(queue)

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._stopping:
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if not self._stopping:
                    _log.warning("data_accept_failed", error=str(error))
                    time.sleep(0.1)
                continue
            if not self._unauthenticated.acquire(blocking=False):
                _log.warning("data_connection_refused", address=address[0], reason="too many")
                sock.close()
                continue
            threading.Thread(
                target=_contain,
                args=(self._greet, sock, address[0]),
                name="data-hello",
                daemon=True,
            ).start()

    def _greet(self, sock: socket.socket, address: str) -> None:
        """Await a valid HELLO on a new socket, then run the handler on this thread."""
        try:
            try:
                header, payload = receive_handshake(
                    sock, TICKET_BYTES, self._options.hello_timeout_s
                )
                hello = self._check_hello(header, payload, _TCP)
            finally:
                self._unauthenticated.release()
            configure_socket(sock, self._options.socket)
        except (OSError, FrameError, Unauthenticated) as error:
            _log.warning("data_connection_refused", address=address, reason=str(error))
            self._refuse(sock, error)
            return
        connection = TcpConnection(sock, hello.name, self._options.socket)
        try:
            connection.send(FrameHeader(FrameKind.HELLO_OK, epoch=hello.epoch))
        except PeerUnavailable:
            connection.close()
            return
        self._run_handler(connection, hello)

    def _refuse(self, sock: socket.socket, error: Exception) -> None:
        with contextlib.suppress(OSError), sock:
            if isinstance(error, Unauthenticated):
                payload = encode_failure(error)
                sock.sendall(FrameHeader(FrameKind.FAILED).pack(len(payload)) + payload)

    def _check_hello(self, header: FrameHeader, payload: bytes, transport: str) -> Hello:
        if header.kind is not FrameKind.HELLO:
            raise Unauthenticated(f"a data connection began with {header.kind.name}, not HELLO")
        return self._tickets.redeem(payload, transport)

    def _hand_over(self, connection: Connection, hello: Hello) -> None:
        threading.Thread(
            target=_contain,
            args=(self._run_handler, connection, hello),
            name=f"data-{hello.name}",
            daemon=True,
        ).start()

    def _run_handler(self, connection: Connection, hello: Hello) -> None:
        with self._lock:
            stopping = self._stopping
            self._connections.add(connection)
        if stopping:
            connection.close()
            return
        _log.info(
            "data_connection_accepted",
            peer=hello.name,
            role=hello.role,
            epoch=hello.epoch,
            transport=hello.transport,
        )
        try:
            self._handler(connection, hello)
        except GlinthawkError as error:
            _log.warning("data_connection_ended", peer=hello.name, reason=str(error))
            connection.close()
        except BaseException:
            connection.close()
            raise


def _contain(work: Callable[..., None], *args: Any) -> None:
    """Do what one connection needs, on its thread: a defect ends that connection only."""
    try:
        work(*args)
    except Exception as error:  # noqa: BLE001 - the server's boundary
        _log.error("data_connection_defect", exc_info=error)


class _DataServicer(data_pb2_grpc.DataServicer):
    """Binds the generated interface to the server's methods."""

    def __init__(
        self, open_call: Callable[[pb.OpenRequest], pb.OpenReply], exchange_call: Any
    ) -> None:
        self._open_call = open_call
        self._exchange_call = exchange_call

    def Open(self, request: pb.OpenRequest, context: grpc.ServicerContext) -> pb.OpenReply:
        """Agree on a transport."""
        return self._open_call(request)

    def Exchange(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:
        """Carry frames."""
        return self._exchange_call(request_iterator, context)


def _small_buffer(header: FrameHeader) -> bytearray:
    if header.payload_bytes > TICKET_BYTES:
        raise FrameError(
            f"a HELLO of {header.payload_bytes} bytes came, a ticket has {TICKET_BYTES}"
        )
    return bytearray(header.payload_bytes)
