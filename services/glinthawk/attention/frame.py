"""What a worker is handed: frames, and where their answers go; and what it says of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from glinthawk.wire.frames import FrameHeader
from glinthawk.wire.transport import Buffer


class Replies(Protocol):
    """Where the answers to a connection's frames go."""

    def post(self, header: FrameHeader, *buffers: Buffer) -> None:
        """Queue a frame to the peer; must not block."""


def _keep() -> None:
    """Do nothing with a payload that nobody wants back."""


@dataclass(frozen=True)
class Frame:
    """A frame that came. `finish` is called once its payload is not read any more."""

    header: FrameHeader
    payload: memoryview
    replies: Replies
    finish: Callable[[], None] = _keep


@dataclass(frozen=True)
class WorkerStats:
    """Figures of a worker; bytes of KV, seconds of computing."""

    kv_used_bytes: int
    kv_capacity_bytes: int
    busy_s: float
    num_dropped: int
