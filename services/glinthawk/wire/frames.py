"""Frames of the data plane: a fixed header, then raw bytes.

Every transport carries the same frames. This module knows their bytes, not sockets.

    offset  0      4  5  6  7  8      12    16    20     22       24    28       36       48
            magic  |  |  |  |  epoch  lane  step  layer  reserved rows  payload  padding
                   |  |  |  dtype                                       bytes    (zero)
                   |  |  flags
                   |  kind
                   version                               all little endian, no alignment
"""

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidRequest

MAGIC = 0x4B484C47
"""The bytes ``GLHK``."""

PROTOCOL_VERSION = 3
"""Version of the frames and of the control messages; peers must have the same."""

HEADER_BYTES = 48

DEFAULT_PAYLOAD_LIMIT = 1 << 30
"""Largest payload that a receiver accepts, in bytes, unless it is told otherwise."""

_LAYOUT = struct.Struct("<IBBBBIIIHHIQ12s")
_PARTS = struct.Struct("<8sIIIHHIQ12s")
_START = struct.Struct("<IBBBB")
_PADDING = bytes(12)
_U16_MAX = (1 << 16) - 1
_U32_MAX = (1 << 32) - 1


class FrameError(InvalidRequest):
    """Bytes from a peer are not a well-formed frame; the connection cannot go on."""


class FrameKind(IntEnum):
    """What a frame is for.

    HELLO           dialler -> server: the ticket
    HELLO_OK        server -> dialler: the ticket was good
    STEP            gateway -> stage 0, stage k -> k + 1: composition [+ activations]
    COMPOSE         stage 0 -> worker: composition without tokens and registrations
    COMPOSED        worker -> stage 0: the composition is applied
    ATTEND          stage -> worker: rows of interleaved q, k, v
    OUTPUT          worker -> stage: rows of o [, with PARTIAL then float32 lse]
    STORE           stage -> worker: rows of interleaved k, v of a prefill step; no reply
    FETCH, FETCHED  stage -> worker and back: earlier k, v of a layer
    RESULT          last stage -> gateway: sampled tokens
    FAILED          any -> upstream: the step failed, with an error
    IMPORT          worker -> worker: a page of a sequence that moves; step is the move's number
    IMPORTED        worker -> worker: all its pages are written
    """

    HELLO = 1
    HELLO_OK = 2
    STEP = 3
    COMPOSE = 4
    COMPOSED = 5
    ATTEND = 6
    OUTPUT = 7
    STORE = 8
    FETCH = 9
    FETCHED = 10
    RESULT = 11
    FAILED = 12
    IMPORT = 13
    IMPORTED = 14


class FrameFlags(IntFlag):
    """Bits that change how a payload is read."""

    NONE = 0
    PARTIAL = 1
    """OUTPUT: log-sum-exps follow the rows, float32 [rows, query heads]."""
    PREFILL_FIRST = 2
    """STEP: a hint of the gateway, that lanes are short of sequences: run prefill first."""


_KINDS = frozenset(map(int, FrameKind))
_DTYPES: dict[int, DType | None] = {0: None, **{int(dtype): dtype for dtype in DType}}
_KNOWN_FLAGS = int(FrameFlags.PARTIAL | FrameFlags.PREFILL_FIRST)
_FLAGS = tuple(FrameFlags(value) for value in range(_KNOWN_FLAGS + 1))


class FrameHeader(NamedTuple):
    """The header of one frame; fields that a kind has no use for are 0 (None for dtype).

    payload_bytes is set by the receiver; a sender leaves it out, for `Connection.send` counts
    the buffers it is given. (A named tuple, for one is made for every frame: a frozen dataclass
    takes five times as long.)
    """

    kind: FrameKind
    epoch: int = 0
    lane: int = 0
    step: int = 0
    layer: int = 0
    rows: int = 0
    dtype: DType | None = None
    flags: FrameFlags = FrameFlags.NONE
    payload_bytes: int = 0

    def pack(self, payload_bytes: int | None = None) -> bytes:
        """Return the 48 bytes of the header, with another payload size if one is given.

        Raises:
            FrameError: a field does not fit into its bits.
        """
        size = self.payload_bytes if payload_bytes is None else payload_bytes
        try:
            return _LAYOUT.pack(
                MAGIC,
                PROTOCOL_VERSION,
                self.kind,
                self.flags,
                0 if self.dtype is None else self.dtype,
                self.epoch,
                self.lane,
                self.step,
                self.layer,
                0,
                self.rows,
                size,
                _PADDING,
            )
        except struct.error as error:
            raise FrameError(
                f"{self} does not fit into a frame header (epoch, lane, step and rows up to "
                f"{_U32_MAX}, layer up to {_U16_MAX}): {error}"
            ) from error

    @classmethod
    def unpack(
        cls, data: bytes | bytearray | memoryview, payload_limit: int = DEFAULT_PAYLOAD_LIMIT
    ) -> "FrameHeader":
        """Read and check the header at the beginning of `data`.

        Raises:
            FrameError: too few bytes, or a field that no sender of this version writes, or a
                payload above `payload_limit` bytes.
        """
        if len(data) < HEADER_BYTES:
            raise FrameError(f"a frame header has {HEADER_BYTES} bytes, {len(data)} came")
        start, epoch, lane, step, layer, reserved, rows, payload_bytes, padding = (
            _PARTS.unpack_from(data)
        )
        meaning = _MEANINGS.get(start)
        if meaning is None:
            raise _explain(start)
        if reserved or padding != _PADDING:
            raise FrameError("reserved bytes of a frame header are not zero")
        if payload_bytes > payload_limit:
            raise FrameError(
                f"a payload of {payload_bytes} bytes is above the limit of {payload_limit}: raise "
                "the frame limit or lower the prefill budget"
            )
        kind, flags, dtype = meaning
        return cls(kind, epoch, lane, step, layer, rows, dtype, flags, payload_bytes)


def _build_meanings() -> dict[bytes, tuple[FrameKind, FrameFlags, DType | None]]:
    """Return what each valid first eight bytes of a header mean."""
    return {
        _START.pack(MAGIC, PROTOCOL_VERSION, kind, flags, number): (kind, flags, dtype)
        for kind in FrameKind
        for flags in _FLAGS
        for number, dtype in _DTYPES.items()
    }


_MEANINGS = _build_meanings()


def _explain(start: bytes) -> FrameError:
    """Return the error for first eight bytes that no sender of this version writes."""
    magic, version, kind, flags, dtype = _START.unpack(start)
    if magic != MAGIC:
        return FrameError(
            f"a frame begins with 0x{MAGIC:08x}, 0x{magic:08x} came: the peer does not speak "
            "Glinthawk's data protocol"
        )
    if version != PROTOCOL_VERSION:
        return FrameError(
            f"frame version {version} came, this process speaks {PROTOCOL_VERSION}: run the "
            "same release everywhere"
        )
    if kind not in _KINDS:
        return FrameError(f"frame kind {kind} is not one of 1 to {max(_KINDS)}")
    if flags & ~_KNOWN_FLAGS:
        return FrameError(f"frame flags 0x{flags:02x} have bits beyond 0x{_KNOWN_FLAGS:02x}")
    return FrameError(f"frame dtype {dtype} is not one of 0 to {max(_DTYPES)}")


class EpochFence:
    """Tells frames of a past epoch from those of the present one, and counts them.

    One thread owns a fence.
    """

    def __init__(self) -> None:
        self.highest = 0
        self.num_dropped = 0

    def admits(self, header: FrameHeader) -> bool:
        """Return whether the frame counts: False for an epoch lower than the highest seen."""
        if header.epoch < self.highest:
            self.num_dropped += 1
            return False
        self.highest = header.epoch
        return True
