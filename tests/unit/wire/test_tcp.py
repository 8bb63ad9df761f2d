import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from glinthawk.errors import PeerUnavailable
from glinthawk.wire.frames import FrameError, FrameHeader, FrameKind
from glinthawk.wire.tcp import TcpConnection, TcpOptions, configure_socket, receive_handshake

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


def test_sockets_do_not_delay_and_notice_a_cut_peer_in_seconds(ends: Ends) -> None:
    sock = ends[0]
    configure_socket(sock, TcpOptions(cut_after_s=6.0, buffer_bytes=65536))
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 6000
    idle, interval = (
        sock.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)
    )
    assert idle + 3 * interval <= 8
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 65536


def test_a_frame_larger_than_the_socket_buffers_arrives_in_pieces(ends: Ends) -> None:
    near, far = ends
    options = TcpOptions(buffer_bytes=1 << 17)
    configure_socket(near, options)
    configure_socket(far, options)
    sender, receiver = TcpConnection(near, "far", options), TcpConnection(far, "near", options)
    parts = [np.random.default_rng(n).integers(0, 256, 137_000 + n, np.uint8) for n in range(20)]
    thread = threading.Thread(
        target=lambda: sender.send(FrameHeader(FrameKind.STORE), *parts), daemon=True
    )
    thread.start()
    _, payload = receiver.receive()
    thread.join(10.0)
    assert np.array_equal(np.frombuffer(payload, np.uint8), np.concatenate(parts))


def test_bytes_that_are_no_frame_close_the_connection(ends: Ends) -> None:
    near, far = ends
    connection = TcpConnection(near, "odd-peer", TcpOptions())
    far.sendall(b"x" * 48)
    with pytest.raises(FrameError, match="does not speak"):
        connection.receive()
    assert far.recv(1) == b""
    with pytest.raises(PeerUnavailable, match="odd-peer"):
        connection.send(FrameHeader(FrameKind.STEP))


def test_a_claimed_payload_above_the_limit_allocates_nothing(ends: Ends) -> None:
    near, far = ends
    connection = TcpConnection(near, "p", TcpOptions(payload_limit=1000))
    far.sendall(FrameHeader(FrameKind.STEP).pack(1001))
    asked: list[FrameHeader] = []

    def allocate(header: FrameHeader) -> bytearray:
        asked.append(header)
        return bytearray(header.payload_bytes)

    with pytest.raises(FrameError, match="1001 bytes is above the limit of 1000"):
        connection.receive(allocate)
    assert asked == []


def test_a_receivers_own_buffer_that_is_too_small_closes_the_connection(ends: Ends) -> None:
    near, far = ends
    connection = TcpConnection(near, "p", TcpOptions())
    far.sendall(FrameHeader(FrameKind.STEP).pack(10))
    with pytest.raises(ValueError, match="10 bytes came, the buffer for it has 9"):
        connection.receive(lambda _: bytearray(9))
    with pytest.raises(PeerUnavailable):
        connection.receive()


def test_a_peer_that_dies_within_a_frame_is_named(ends: Ends) -> None:
    near, far = ends
    connection = TcpConnection(near, "worker-1", TcpOptions())
    far.sendall(FrameHeader(FrameKind.STEP).pack(10) + b"12345")
    far.close()
    with pytest.raises(PeerUnavailable, match="worker-1"):
        connection.receive()


def test_a_handshake_that_drips_in_is_over_in_time(ends: Ends) -> None:
    near, far = ends
    stop = threading.Event()

    def drip() -> None:
        for byte in FrameHeader(FrameKind.HELLO).pack():
            if stop.wait(0.05):
                return
            far.sendall(bytes([byte]))

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    with pytest.raises(TimeoutError):
        receive_handshake(near, 32, 0.3)
    stop.set()
    thread.join(5.0)


def test_a_handshake_leaves_the_socket_blocking(ends: Ends) -> None:
    near, far = ends
    far.sendall(FrameHeader(FrameKind.HELLO).pack(3) + b"abc")
    header, payload = receive_handshake(near, 32, 5.0)
    assert (header.kind, payload) == (FrameKind.HELLO, b"abc")
    assert near.gettimeout() is None
