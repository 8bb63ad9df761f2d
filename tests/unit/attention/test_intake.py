import threading
from collections.abc import Callable

import numpy as np
import pytest

from glinthawk.attention.intake import BufferPool
from glinthawk.errors import PeerUnavailable
from glinthawk.wire.frames import FrameHeader, FrameKind

WAIT_S = 10.0


def header(num_bytes: int) -> FrameHeader:
    return FrameHeader(FrameKind.STORE, payload_bytes=num_bytes)


def start(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `work` on a thread; its result, or error, comes into the list."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except PeerUnavailable as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_a_frame_beyond_the_limit_waits_until_one_is_done() -> None:
    pool = BufferPool(max_frames=2)
    pool.admit()
    pool.admit()
    thread, _ = start(pool.admit)
    thread.join(0.1)
    assert thread.is_alive()
    pool.give_back(None)
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_bytes_beyond_the_limit_wait_until_a_buffer_is_back() -> None:
    pool = BufferPool(max_bytes=1 << 16)
    pool.admit()
    first = pool.take(header(40_000))
    thread, results = start(lambda: pool.take(header(5_000)))
    thread.join(0.1)
    assert thread.is_alive()
    pool.give_back(first)
    thread.join(WAIT_S)
    assert isinstance(results[0], np.ndarray)
    assert results[0].nbytes >= 5_000


def test_a_single_frame_above_the_limit_is_taken() -> None:
    pool = BufferPool(max_bytes=1 << 16)
    pool.admit()
    assert pool.take(header(3_000_000)).nbytes >= 3_000_000


def test_a_buffer_that_came_back_is_used_again() -> None:
    pool = BufferPool()
    pool.admit()
    first = pool.take(header(9_000))
    pool.give_back(first)
    pool.admit()
    assert pool.take(header(8_500)) is first


def test_closing_wakes_whoever_waits() -> None:
    pool = BufferPool(max_frames=1)
    pool.admit()
    thread, results = start(pool.admit)
    pool.close()
    thread.join(WAIT_S)
    assert isinstance(results[0], PeerUnavailable)
    with pytest.raises(PeerUnavailable, match="closed"):
        pool.take(header(1))
