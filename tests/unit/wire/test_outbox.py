"""The outbox over real sockets: order, slow peers, broken ones."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from glinthawk.wire.frames import FrameHeader, FrameKind
from glinthawk.wire.outbox import DIRECT_BYTES, Outbox
from glinthawk.wire.tcp import TcpConnection, TcpOptions

OPTIONS = TcpOptions(cut_after_s=30.0)


class Lost:
    """What an outbox said of its connection."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.threads: list[str] = []
        self.told = threading.Event()

    def __call__(self, peer: str, reason: str) -> None:
        self.reasons.append(reason)
        self.threads.append(threading.current_thread().name)
        self.told.set()


@contextmanager
def connect() -> Iterator[tuple[TcpConnection, TcpConnection]]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    one, other = (TcpConnection(sock, "peer", OPTIONS) for sock in (ours, theirs))
    try:
        yield one, other
    finally:
        one.close()
        other.close()


def header(step: int) -> FrameHeader:
    return FrameHeader(FrameKind.STORE, epoch=1, step=step)


def content(step: int, size: int) -> bytes:
    return bytes([step % 251]) * size


def test_frames_of_all_sizes_arrive_whole_and_in_order() -> None:
    # More than a socket takes at once, so that many are begun by one thread and ended by another.
    sizes = [0, 1, 70_000, 300_000, DIRECT_BYTES + 1, 5, 900_000, 12] * 12
    sent: list[float] = []
    with connect() as (ours, theirs):
        outbox = Outbox(ours, Lost(), sent.append)
        received: list[tuple[int, bytes]] = []

        def read() -> None:
            for _ in sizes:
                frame, payload = theirs.receive()
                received.append((frame.step, bytes(payload)))

        reader = threading.Thread(target=read)
        reader.start()
        for step, size in enumerate(sizes):
            data = content(step, size)
            outbox.post(header(step), data[: size // 3], data[size // 3 :])
        reader.join(30)
        assert received == [(step, content(step, size)) for step, size in enumerate(sizes)]
        outbox.close(flush_s=5)
    assert sum(sent) == sum(sizes)


def test_who_posts_never_waits_for_a_peer_that_reads_nothing() -> None:
    with connect() as (ours, theirs):
        outbox = Outbox(ours, Lost(), lambda _: None)
        poster = threading.Thread(
            target=lambda: [outbox.post(header(step), content(step, 200_000)) for step in range(20)]
        )
        poster.start()
        poster.join(10)
        assert not poster.is_alive()
        for step in range(20):
            frame, payload = theirs.receive()
            assert (frame.step, bytes(payload)) == (step, content(step, 200_000))
        outbox.close(flush_s=5)


def test_a_small_frame_needs_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with connect() as (ours, theirs):
        senders: list[int] = []
        begin_send = ours.begin_send

        def note_thread(*arguments: object) -> object:
            senders.append(threading.get_ident())
            rest = begin_send(*arguments)  # type: ignore[arg-type]
            assert rest is None
            return rest

        monkeypatch.setattr(ours, "begin_send", note_thread)
        outbox = Outbox(ours, Lost(), lambda _: None)
        outbox.post(header(1), b"x")
        assert theirs.receive()[0].step == 1
        assert senders == [threading.get_ident()]
        outbox.close(flush_s=5)


def test_a_broken_connection_is_told_once_and_not_by_who_posts() -> None:
    with connect() as (ours, theirs):
        lost = Lost()
        outbox = Outbox(ours, lost, lambda _: None)
        theirs.close()
        for step in range(50):
            outbox.post(header(step), content(step, 100_000))
        assert lost.told.wait(10)
        assert len(lost.reasons) == 1
        assert "peer" in lost.reasons[0]
        assert lost.threads == ["outbox-peer"]
