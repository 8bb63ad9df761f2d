"""Data connections of a worker: a reader for each, one queue in front of the compute thread.

    stage --frames--> [ reader: bounded buffers ] --queue--> compute thread --outbox--> stage

A reader that has filled its connection's buffers reads no further, so a flood is held back by
the connection itself and memory stays bounded.
"""

import queue
import threading
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glinthawk.attention.frame import Frame
from glinthawk.attention.sender import PageWanted
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.frames import FrameHeader
from glinthawk.wire.outbox import Outbox
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

log = get_logger("attention.intake")

MAX_FRAMES = 64
"""Frames of one connection that wait for the compute thread."""

MAX_BYTES = 256 << 20
"""Payload bytes of one connection that wait; a single larger frame is still taken."""

_SMALLEST_BUFFER = 4096


@dataclass(frozen=True)
class NewView:
    """The gateway told this worker's own epoch, and the shape of the pages."""

    epoch: int
    geometry: KVGeometry


@dataclass(frozen=True)
class Forget:
    """The gateway's run is over: nothing that is held is needed again."""


@dataclass(frozen=True)
class Stop:
    """The compute thread ends."""


Item = Frame | PageWanted | NewView | Forget | Stop


class BufferPool:
    """Payload buffers of one connection: reused, and bounded in number and bytes."""

    def __init__(self, max_frames: int = MAX_FRAMES, max_bytes: int = MAX_BYTES) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._free: dict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)
        self._free_bytes = 0
        self._num_frames = 0
        self._num_bytes = 0
        self._is_closed = False

    def admit(self) -> None:
        """Wait until one frame more may be read.

        Raises:
            PeerUnavailable: the pool was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._num_frames < self._max_frames)
            self._check_open()
            self._num_frames += 1

    def take(self, header: FrameHeader) -> npt.NDArray[np.uint8]:
        """Wait for room and return a buffer that holds the payload of an admitted frame.

        Raises:
            PeerUnavailable: the pool was closed.
        """
        size = _size_class(header.payload_bytes)
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_closed
                    or not self._num_bytes
                    or self._num_bytes + size <= self._max_bytes
                )
            )
            self._check_open()
            self._num_bytes += size
            if self._free[size]:
                self._free_bytes -= size
                return self._free[size].pop()
        return np.empty(size, np.uint8)

    def give_back(self, buffer: npt.NDArray[np.uint8] | None) -> None:
        """Take back the buffer of a frame that is done with (None if it had no payload)."""
        with self._changed:
            self._num_frames -= 1
            if buffer is not None:
                self._num_bytes -= buffer.nbytes
                if self._free_bytes + buffer.nbytes <= self._max_bytes:
                    self._free[buffer.nbytes].append(buffer)
                    self._free_bytes += buffer.nbytes
            self._changed.notify_all()

    def close(self) -> None:
        """Wake whoever waits; nothing is taken any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._is_closed:
            raise PeerUnavailable("the connection was closed on this side")


class Intake:
    """Turns what comes over data connections into items of one queue."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        self._metrics = metrics
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: dict[Outbox, BufferPool] = {}
        metrics.queue_depth.set_function(self._items.qsize)

    @property
    def depth(self) -> int:
        """Items that wait."""
        return self._items.qsize()

    def post(self, item: Item) -> None:
        """Queue an item, from any thread."""
        self._items.put(item)

    def take(self) -> Item:
        """Wait for the next item."""
        return self._items.get()

    def accept(self, connection: Connection, hello: Hello) -> None:
        """Read the connection of a stage, or of another worker, until it breaks."""

        def end_broken(peer: str, reason: str) -> None:
            # The outbox could not send: the reader must end too.
            log.warning("send_failed", peer=peer, reason=reason)
            connection.close()

        outbox = Outbox(connection, end_broken, self._metrics.bytes_sent.inc)
        pool = BufferPool()
        with self._lock:
            self._open[outbox] = pool
        try:
            self._read(connection, outbox, pool)
        except GlinthawkError as error:
            with self._lock:
                was_open = self._open.pop(outbox, None) is not None
            if was_open:
                log.warning("peer_lost", peer=hello.name, role=hello.role, reason=str(error))
            outbox.close()

    def close(self) -> None:
        """Close every connection, after what is queued has been sent."""
        with self._lock:
            connections = dict(self._open)
            self._open.clear()
        for outbox, pool in connections.items():
            pool.close()
            outbox.close(flush_s=1.0)

    def _read(self, connection: Connection, outbox: Outbox, pool: BufferPool) -> None:
        buffer: npt.NDArray[np.uint8] | None = None

        def allocate(header: FrameHeader) -> npt.NDArray[np.uint8]:
            nonlocal buffer
            buffer = pool.take(header)
            return buffer

        while True:
            pool.admit()
            buffer = None
            header, payload = connection.receive(allocate)
            self._metrics.bytes_received.inc(header.payload_bytes)
            self._items.put(Frame(header, payload, outbox, _GiveBack(pool, buffer)))


@dataclass(frozen=True)
class _GiveBack:
    pool: BufferPool
    buffer: npt.NDArray[np.uint8] | None

    def __call__(self) -> None:
        self.pool.give_back(self.buffer)


def _size_class(num_bytes: int) -> int:
    """Round up to a power of two, or to whole MiB above one, so that buffers fit again."""
    if num_bytes > 1 << 20:
        return -(-num_bytes >> 20) << 20
    return max(_SMALLEST_BUFFER, 1 << (num_bytes - 1).bit_length())
