"""Frames over a TCP socket: the fast path.

Payloads are gathered from the sender's buffers by the kernel and received straight into the
receiver's; nothing is copied in Python.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from glinthawk.errors import PeerUnavailable
from glinthawk.wire.frames import (
    DEFAULT_PAYLOAD_LIMIT,
    HEADER_BYTES,
    FrameError,
    FrameHeader,
)
from glinthawk.wire.transport import Allocate, Buffer, Connection, allocate_fresh, view_bytes

_IOV_LIMIT = 512
_CLOSE_WAIT_S = 1.0


@dataclass(frozen=True)
class TcpOptions:
    """How sockets are set up.

    buffer_bytes: fixed size of the send and receive buffers; None lets the kernel fit them to
    the link, which it does up to net.ipv4.tcp_rmem and tcp_wmem (a fixed size is capped by
    net.core.rmem_max, and by default that is far less than a long link needs).
    cut_after_s: a peer that acknowledges nothing, or leaves its buffers full, for so long is
    taken for dead. payload_limit: largest payload accepted, bytes.
    """

    buffer_bytes: int | None = None
    cut_after_s: float = 10.0
    payload_limit: int = DEFAULT_PAYLOAD_LIMIT


def configure_socket(sock: socket.socket, options: TcpOptions) -> None:
    """Set the options that frames want: no delay, notice of a cut peer, buffers."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.buffer_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.buffer_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, round(options.cut_after_s / 3))
    for name, value in (
        ("TCP_KEEPIDLE", seconds),
        ("TCP_KEEPINTVL", seconds),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", round(options.cut_after_s * 1000)),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TcpConnection(Connection):
    """A connection over a connected, blocking socket, which it owns from now on."""

    def __init__(self, sock: socket.socket, peer: str, options: TcpOptions) -> None:
        self._sock = sock
        self._peer = peer
        self._limit = options.payload_limit
        self._send_lock = threading.RLock()
        self._receive_lock = threading.RLock()
        self._state_lock = threading.Lock()
        self._closed_because: str | None = None
        self._header = bytearray(HEADER_BYTES)
        self._header_view = memoryview(self._header)

    @property
    def peer(self) -> str:
        """Name of the process at the other end."""
        return self._peer

    def send(self, header: FrameHeader, *buffers: Buffer) -> None:
        """Send one frame; see `Connection.send`."""
        self._send(*self._lay_out(header, buffers))

    def begin_send(self, header: FrameHeader, *buffers: Buffer) -> Callable[[], None] | None:
        """Send what the socket takes at once; see `Connection.begin_send`."""
        views, left = self._lay_out(header, buffers)
        with self._send_lock:
            try:
                if self._closed_because is None and len(views) <= _IOV_LIMIT:
                    sent = self._sock.sendmsg(views, (), socket.MSG_DONTWAIT)
                    left -= sent
                    _drop_sent(views, sent, left)
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._broken("send", error) from error
        return partial(self._send, views, left) if left else None

    def receive(self, allocate: Allocate = allocate_fresh) -> tuple[FrameHeader, memoryview]:
        """Wait for the next frame; see `Connection.receive`."""
        with self._receive_lock:
            if self._closed_because is not None:
                raise self._closed()
            try:
                self._fill(self._header_view)
                header = FrameHeader.unpack(self._header, self._limit)
                payload = take_buffer(allocate, header)
                self._fill(payload)
            except OSError as error:
                raise self._broken("receive", error) from error
            except BaseException as error:
                self._shut(f"a frame could not be read: {error}")
                raise
            return header, payload

    def close(self) -> None:
        """Close, and wake threads that wait in `send` or `receive`."""
        self._shut("it was closed on this side")
        # The descriptor is given back only when no thread uses it: its number may be reused.
        held = [
            lock
            for lock in (self._send_lock, self._receive_lock)
            if lock.acquire(timeout=_CLOSE_WAIT_S)
        ]
        self._sock.close()
        for lock in held:
            lock.release()

    def _lay_out(
        self, header: FrameHeader, buffers: tuple[Buffer, ...]
    ) -> tuple[list[bytes | memoryview], int]:
        """Return the parts of a frame, and its bytes."""
        views: list[bytes | memoryview] = [b""]
        size = 0
        for buffer in buffers:
            view = view_bytes(buffer)
            if view:
                views.append(view)
                size += len(view)
        check_payload(size, self._limit)
        views[0] = header.pack(size)
        return views, HEADER_BYTES + size

    def _send(self, views: list[bytes | memoryview], left: int) -> None:
        """Send `views`, which have `left` bytes, however long it takes."""
        with self._send_lock:
            if self._closed_because is not None:
                raise self._closed()
            try:
                while left:
                    sent = self._sock.sendmsg(views[:_IOV_LIMIT])
                    left -= sent
                    _drop_sent(views, sent, left)
            except OSError as error:
                raise self._broken("send", error) from error

    def _fill(self, view: memoryview) -> None:
        left = len(view)
        while left:
            received = self._sock.recv_into(view, left, socket.MSG_WAITALL)
            if received == 0:
                raise ConnectionResetError("the other side closed the connection")
            left -= received
            if left:
                view = view[received:]

    def _closed(self) -> PeerUnavailable:
        return PeerUnavailable(f"the connection to {self._peer} is closed: {self._closed_because}")

    def _broken(self, action: str, error: OSError) -> PeerUnavailable:
        self._shut(f"{action} failed: {error}")
        return PeerUnavailable(
            f"the connection to {self._peer} is broken: {self._closed_because}; see whether that "
            "process still runs"
        )

    def _shut(self, reason: str) -> None:
        with self._state_lock:
            if self._closed_because is not None:
                return
            self._closed_because = reason
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


def _drop_sent(views: list[bytes | memoryview], sent: int, left: int) -> None:
    """Take the first `sent` bytes out of `views`, of which `left` stay."""
    if not left:
        views.clear()
        return
    done = 0
    while sent >= len(views[done]):
        sent -= len(views[done])
        done += 1
    del views[:done]
    views[0] = memoryview(views[0])[sent:]


def check_payload(size: int, limit: int) -> None:
    """Refuse to send a payload that no receiver with this limit would accept.

    Raises:
        FrameError: it is above the limit.
    """
    if size > limit:
        raise FrameError(
            f"a payload of {size} bytes is above the limit of {limit}: raise the frame limit or "
            "lower the prefill budget"
        )


def take_buffer(allocate: Allocate, header: FrameHeader) -> memoryview:
    """Return the writable view of exactly the payload's size from a receiver's buffer.

    Raises:
        ValueError: the buffer that `allocate` returned is too small.
    """
    size = header.payload_bytes
    if size == 0:
        return memoryview(bytearray())
    view = view_bytes(allocate(header))
    if len(view) == size:
        return view
    if len(view) < size:
        raise ValueError(f"a payload of {size} bytes came, the buffer for it has {len(view)}")
    return view[:size]


def receive_exactly(
    sock: socket.socket, size: int, deadline: float, clock: Callable[[], float] = time.monotonic
) -> bytes:
    """Receive `size` bytes before `deadline`, however slowly they come; for handshakes.

    Raises:
        OSError: the peer closed, or the time is over.
    """
    data = bytearray()
    while len(data) < size:
        left = deadline - clock()
        if left <= 0:
            raise TimeoutError(f"{len(data)} of {size} bytes came in time")
        sock.settimeout(left)
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the other side closed the connection")
        data += part
    return bytes(data)


def receive_handshake(
    sock: socket.socket, payload_limit: int, timeout_s: float
) -> tuple[FrameHeader, bytes]:
    """Receive one small frame within `timeout_s` seconds and leave the socket blocking.

    Raises:
        FrameError: it is no frame, or its payload is above the limit.
        OSError: the peer closed, or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    header = FrameHeader.unpack(receive_exactly(sock, HEADER_BYTES, deadline), payload_limit)
    payload = receive_exactly(sock, header.payload_bytes, deadline)
    sock.settimeout(None)
    return header, payload
