import itertools
import struct

import pytest

from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidRequest
from glinthawk.wire.frames import (
    HEADER_BYTES,
    EpochFence,
    FrameError,
    FrameFlags,
    FrameHeader,
    FrameKind,
)

FULL = FrameHeader(
    FrameKind.OUTPUT,
    epoch=(1 << 32) - 1,
    lane=2,
    step=3,
    layer=(1 << 16) - 1,
    rows=5,
    dtype=DType.BFLOAT16,
    flags=FrameFlags.PARTIAL,
    payload_bytes=1 << 20,
)


def test_a_header_is_48_bytes_and_comes_back() -> None:
    for kind, dtype, flags in itertools.product(FrameKind, [None, *DType], FrameFlags):
        header = FrameHeader(kind, 1, 2, 3, 4, 5, dtype, flags, 6)
        data = header.pack()
        assert len(data) == HEADER_BYTES == 48
        assert FrameHeader.unpack(data) == header
    assert FrameHeader.unpack(FULL.pack()) == FULL


def test_the_layout_is_fixed() -> None:
    data = FULL.pack()
    assert struct.unpack_from("<IBBBB", data) == (0x4B484C47, 3, 7, 1, 3)
    assert struct.unpack_from("<IIIHHIQ", data, 8) == (0xFFFFFFFF, 2, 3, 0xFFFF, 0, 5, 1 << 20)
    assert data[36:] == bytes(12)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "does not speak"),
        (4, 9, "version 9"),
        (5, 0, "kind 0"),
        (5, 15, "kind 15"),
        (6, 0x84, "flags 0x84"),
        (7, 4, "dtype 4"),
        (22, 1, "reserved"),
        (47, 1, "reserved"),
        (34, 1, "above the limit"),
    ],
)
def test_a_field_that_no_sender_writes_is_refused(offset: int, value: int, message: str) -> None:
    data = bytearray(FULL.pack())
    data[offset] = value
    with pytest.raises(FrameError, match=message):
        FrameHeader.unpack(data)


def test_a_payload_above_the_limit_is_refused_with_both_sizes() -> None:
    with pytest.raises(FrameError, match="1048576 bytes is above the limit of 1048575"):
        FrameHeader.unpack(FULL.pack(), payload_limit=(1 << 20) - 1)
    assert FrameHeader.unpack(FULL.pack(), payload_limit=1 << 20) == FULL


@pytest.mark.parametrize("size", [0, 1, 47])
def test_too_few_bytes_are_refused(size: int) -> None:
    with pytest.raises(FrameError, match="48 bytes"):
        FrameHeader.unpack(FULL.pack()[:size])


@pytest.mark.parametrize("field", [{"epoch": 1 << 32}, {"layer": 1 << 16}, {"rows": -1}])
def test_a_number_that_does_not_fit_is_refused(field: dict[str, int]) -> None:
    with pytest.raises(FrameError, match="does not fit"):
        FrameHeader(FrameKind.STEP, **field).pack()


def test_a_frame_error_is_the_callers_fault() -> None:
    assert issubclass(FrameError, InvalidRequest)


def test_a_fence_drops_and_counts_frames_of_a_past_epoch() -> None:
    fence = EpochFence()
    epochs = [1, 1, 3, 2, 3, 1, 4]
    admitted = [fence.admits(FrameHeader(FrameKind.ATTEND, epoch)) for epoch in epochs]
    assert admitted == [True, True, True, False, True, False, True]
    assert (fence.highest, fence.num_dropped) == (4, 2)
