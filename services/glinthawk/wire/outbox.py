"""A queue in front of a connection, so that who computes never waits for a slow peer.

One outbox has one thread that sends in the order of posting. A peer that takes nothing more
fills its own queue and holds up nobody else.
"""

import queue
import threading
from collections.abc import Callable

from glinthawk.errors import PeerUnavailable
from glinthawk.wire.frames import FrameError, FrameHeader
from glinthawk.wire.transport import Buffer, Connection, view_bytes

OnLost = Callable[[str, str], None]
"""Called once with the peer's name and the reason when a connection breaks."""


class Outbox:
    """Sends frames over `connection` from a thread of its own.

    count_bytes: learns the payload bytes of each frame that was sent.
    """

    def __init__(
        self, connection: Connection, on_lost: OnLost, count_bytes: Callable[[float], None]
    ) -> None:
        self.connection = connection
        self._on_lost = on_lost
        self._count_bytes = count_bytes
        self._queue: queue.SimpleQueue[tuple[FrameHeader, tuple[Buffer, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(
            target=self._run, name=f"outbox-{connection.peer}", daemon=True
        )
        self._thread.start()

    @property
    def peer(self) -> str:
        """Name of the process at the other end."""
        return self.connection.peer

    def post(self, header: FrameHeader, *buffers: Buffer) -> None:
        """Queue a frame; the buffers must stay as they are until the peer has answered, or be
        given away for good."""
        self._queue.put((header, buffers))

    def close(self, *, flush_s: float = 0.0) -> None:
        """End the thread and the connection, after up to `flush_s` seconds for what is queued."""
        self._queue.put(None)
        if flush_s and self._thread is not threading.current_thread():
            self._thread.join(flush_s)
        self.connection.close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            header, buffers = item
            try:
                self.connection.send(header, *buffers)
            except (PeerUnavailable, FrameError) as error:
                self._on_lost(self.peer, str(error))
                return
            self._count_bytes(sum(view_bytes(buffer).nbytes for buffer in buffers))
