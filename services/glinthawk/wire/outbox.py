"""A queue in front of a connection, so that who computes never waits for a slow peer.

Frames go in the order of posting. A peer that takes nothing more fills its own queue and holds
up nobody else.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial

from glinthawk.errors import PeerUnavailable
from glinthawk.wire.frames import FrameError, FrameHeader
from glinthawk.wire.transport import Buffer, Connection, view_bytes

DIRECT_BYTES = 1 << 20
"""Largest payload that is sent from the thread that posts it."""

_Item = tuple[Callable[[], None], int]
"""What sends a frame, or the rest of one, and the bytes of its payload."""

OnLost = Callable[[str, str], None]
"""Called once with the peer's name and the reason when a connection breaks."""


class Outbox:
    """Sends frames over `connection`: at once what its socket takes, the rest from a thread.

    A frame that goes without waiting spares the switch to that thread, which takes longer than
    to send it; larger ones than `DIRECT_BYTES` are the thread's, so that who posts goes on.
    count_bytes: learns the payload bytes of each frame that was sent.
    """

    def __init__(
        self, connection: Connection, on_lost: OnLost, count_bytes: Callable[[float], None]
    ) -> None:
        self.connection = connection
        self._on_lost = on_lost
        self._count_bytes = count_bytes
        self._posting = threading.Lock()
        self._num_queued = 0
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, name=f"outbox-{connection.peer}", daemon=True
        )
        self._thread.start()

    @property
    def peer(self) -> str:
        """Name of the process at the other end."""
        return self.connection.peer

    def post(self, header: FrameHeader, *buffers: Buffer) -> None:
        """Send a frame or queue it; the buffers must stay as they are until the peer has
        answered, or be given away for good."""
        num_bytes = sum(view_bytes(buffer).nbytes for buffer in buffers)
        with self._posting:
            send: Callable[[], None] | None = partial(self.connection.send, header, *buffers)
            if not self._num_queued and num_bytes <= DIRECT_BYTES:
                # An error comes again in the thread, which tells of it.
                with contextlib.suppress(PeerUnavailable, FrameError):
                    send = self.connection.begin_send(header, *buffers)
            if send is not None:
                self._num_queued += 1
                self._queue.put((send, num_bytes))
                return
        self._count_bytes(num_bytes)

    def close(self, *, flush_s: float = 0.0) -> None:
        """End the thread and the connection, after up to `flush_s` seconds for what is queued."""
        self._queue.put(None)
        if flush_s and self._thread is not threading.current_thread():
            self._thread.join(flush_s)
        self.connection.close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            send, num_bytes = item
            try:
                send()
            except (PeerUnavailable, FrameError) as error:
                self._on_lost(self.peer, str(error))
                return
            with self._posting:
                self._num_queued -= 1
            self._count_bytes(num_bytes)
