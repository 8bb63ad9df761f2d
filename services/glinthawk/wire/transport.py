"""The interface over which frames travel, whatever carries them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from glinthawk.errors import InvariantBroken
from glinthawk.wire.frames import FrameHeader

Buffer = bytes | bytearray | memoryview | npt.NDArray[np.generic]
"""Something with contiguous bytes that `send` reads."""

Allocate = Callable[[FrameHeader], memoryview | bytearray | npt.NDArray[np.generic]]
"""Gives a writable buffer of at least header.payload_bytes bytes for a frame's payload."""


def allocate_fresh(header: FrameHeader) -> memoryview:
    """Return new memory for a payload: the choice of receivers that reuse no buffers."""
    return np.empty(header.payload_bytes, np.uint8).data


def view_bytes(buffer: Buffer) -> memoryview:
    """Return the bytes of a buffer, without a copy.

    Raises:
        InvariantBroken: an array whose bytes do not lie one after another.
    """
    view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
    if not view.c_contiguous:
        raise InvariantBroken(
            f"a buffer of shape {view.shape} and strides {view.strides} is not contiguous: copy it "
            "before it is sent"
        )
    if view.format == "B" and view.ndim == 1:
        return view
    return view.cast("B") if view.nbytes else memoryview(b"")


class Connection(ABC):
    """A two-way, ordered, reliable stream of frames between two processes.

    Any number of threads may send: frames are never interleaved (who uses `begin_send` keeps the
    others away until its rest is sent, as `Outbox` does). Threads that receive take
    turns. Receivers must keep reading: a peer whose buffers stay full for
    seconds is taken for dead by the other side, so no receiving thread should compute for long.
    """

    @property
    @abstractmethod
    def peer(self) -> str:
        """Name of the process at the other end, for logs and errors."""

    @abstractmethod
    def send(self, header: FrameHeader, *buffers: Buffer) -> None:
        """Send one frame whose payload is `buffers`, one after another.

        Blocks until the buffers may be written again. The size in the sent header is that of
        the buffers, whatever header.payload_bytes says.

        Raises:
            PeerUnavailable: the connection is broken or closed; the message names the peer.
            FrameError: the frame is above the payload limit, or a header field does not fit.
                Nothing was sent.
        """

    def begin_send(self, header: FrameHeader, *buffers: Buffer) -> Callable[[], None] | None:
        """Send as much of one frame as goes without waiting.

        Returns what sends the rest, or None if nothing is left. Until the rest is sent, nothing
        else may be. Errors are those of `send`, here or in what is returned.
        """
        return partial(self.send, header, *buffers)

    @abstractmethod
    def receive(self, allocate: Allocate = allocate_fresh) -> tuple[FrameHeader, memoryview]:
        """Wait for the next frame and return its header and payload.

        The payload is received straight into the buffer that `allocate` returns; the view that
        comes back covers exactly header.payload_bytes of it. `allocate` is not called for an
        empty payload.

        Raises:
            PeerUnavailable: the connection is broken or closed; the message names the peer.
            FrameError: the peer sent something that is no frame; the connection is closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Close, and wake threads that wait in `send` or `receive`. May be called twice."""
