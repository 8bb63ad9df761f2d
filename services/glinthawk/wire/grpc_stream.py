"""Frames over a bidirectional gRPC stream: the way where only gRPC passes.

The frames form one byte stream that is cut into chunks below gRPC's message limit, without
regard to where a frame begins.
"""

import threading
from collections.abc import Callable, Iterator

import grpc

from glinthawk.errors import PeerUnavailable
from glinthawk.wire.chunks import ChunkQueue
from glinthawk.wire.frames import DEFAULT_PAYLOAD_LIMIT, HEADER_BYTES, FrameHeader
from glinthawk.wire.proto import data_pb2 as pb
from glinthawk.wire.tcp import check_payload, take_buffer
from glinthawk.wire.transport import Allocate, Buffer, Connection, allocate_fresh, view_bytes

LINGER_S = 0.5
"""What is queued at a close has so long to get out, as with a socket."""

CHUNK_BYTES = 1 << 20
"""Bytes of one message; gRPC's default limit is 4 MiB."""

QUEUED_CHUNKS = 8
"""Chunks that wait for the network before a sender blocks."""


class GrpcConnection(Connection):
    """A connection over the two directions of an Exchange call.

    Args:
        incoming: messages from the peer, in order.
        outgoing: queue of what goes to the peer, drained by the call through `as_messages`.
        peer: name of the other side.
        cancel: ends the call, from any thread.
        payload_limit: largest payload accepted, bytes.
    """

    def __init__(
        self,
        incoming: Iterator[pb.Chunk],
        outgoing: ChunkQueue,
        peer: str,
        cancel: Callable[[], object],
        payload_limit: int = DEFAULT_PAYLOAD_LIMIT,
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._peer = peer
        self._cancel = cancel
        self._limit = payload_limit
        self._rest = memoryview(b"")
        self._send_lock = threading.Lock()
        self._receive_lock = threading.RLock()
        self._state_lock = threading.Lock()
        self._closed_because: str | None = None

    @property
    def peer(self) -> str:
        """Name of the process at the other end."""
        return self._peer

    def rename(self, peer: str) -> None:
        """Set the peer's name, once the handshake has told it."""
        self._peer = peer

    def send(self, header: FrameHeader, *buffers: Buffer) -> None:
        """Send one frame; see `Connection.send`."""
        views = [view_bytes(buffer) for buffer in buffers]
        size = sum(map(len, views))
        check_payload(size, self._limit)
        head = header.pack(size)
        with self._send_lock:
            for chunk in cut_chunks(head, views):
                if not self._outgoing.put(chunk):
                    raise self._unavailable()

    def receive(self, allocate: Allocate = allocate_fresh) -> tuple[FrameHeader, memoryview]:
        """Wait for the next frame; see `Connection.receive`."""
        with self._receive_lock:
            if self._closed_because is not None:
                raise self._unavailable()
            head = bytearray(HEADER_BYTES)
            try:
                self._fill(memoryview(head))
                header = FrameHeader.unpack(head, self._limit)
                payload = take_buffer(allocate, header)
                self._fill(payload)
            except PeerUnavailable:
                raise
            except BaseException as error:
                self._shut(f"a frame could not be read: {error}")
                raise
            return header, payload

    def close(self) -> None:
        """Close, and wake threads that wait in `send` or `receive`."""
        self._shut("it was closed on this side", linger_s=LINGER_S)

    def end_sending(self) -> None:
        """Let senders fail, because the call is over; what came before can still be received."""
        self._outgoing.close()

    def _fill(self, view: memoryview) -> None:
        while len(view):
            if not len(self._rest):
                self._rest = memoryview(self._next_chunk())
            size = min(len(view), len(self._rest))
            view[:size] = self._rest[:size]
            self._rest = self._rest[size:]
            view = view[size:]

    def _next_chunk(self) -> bytes:
        try:
            return next(self._incoming).data
        except StopIteration:
            self._shut("the other side closed it")
            raise self._unavailable() from None
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else "an ended stream"
            self._shut(f"the other side or the network ended it ({code})")
            raise self._unavailable() from error

    def _unavailable(self) -> PeerUnavailable:
        reason = self._closed_because or "the other side or the network ended it"
        return PeerUnavailable(
            f"the connection to {self._peer} is closed: {reason}; see whether that process still "
            "runs"
        )

    def _shut(self, reason: str, linger_s: float = 0.0) -> None:
        with self._state_lock:
            if self._closed_because is not None:
                return
            self._closed_because = reason
        self._outgoing.close()
        if linger_s:
            timer = threading.Timer(linger_s, self._cancel)
            timer.daemon = True
            timer.start()
        else:
            self._cancel()


def as_messages(queue: ChunkQueue) -> Iterator[pb.Chunk]:
    """Yield what is queued as messages of the call, until the queue is closed."""
    for chunk in queue:
        yield pb.Chunk(data=chunk)


def cut_chunks(head: bytes, views: list[memoryview]) -> Iterator[bytes]:
    """Yield a frame's bytes as chunks of at most CHUNK_BYTES; small ones are joined."""
    pending: list[bytes | memoryview] = [head]
    pending_bytes = len(head)
    for view in views:
        start = 0
        while start < len(view):
            part = view[start : start + CHUNK_BYTES - pending_bytes]
            pending.append(part)
            pending_bytes += len(part)
            start += len(part)
            if pending_bytes == CHUNK_BYTES:
                yield b"".join(pending)
                pending, pending_bytes = [], 0
    if pending:
        yield b"".join(pending)
