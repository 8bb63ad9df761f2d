import threading
import time

import numpy as np
import pytest

from glinthawk.errors import InvariantBroken
from glinthawk.wire.chunks import ChunkQueue
from glinthawk.wire.grpc_stream import CHUNK_BYTES, cut_chunks
from glinthawk.wire.transport import view_bytes


def test_a_full_queue_holds_up_the_producer_until_there_is_room() -> None:
    chunks = ChunkQueue(2)
    done = threading.Event()

    def produce() -> None:
        for index in range(5):
            chunks.put(bytes([index]))
        done.set()

    threading.Thread(target=produce, daemon=True).start()
    assert not done.wait(0.1)
    consumer = iter(chunks)
    assert [next(consumer) for _ in range(5)] == [bytes([index]) for index in range(5)]
    assert done.wait(60.0)


def test_a_closed_queue_frees_producers_and_gives_what_is_left() -> None:
    chunks = ChunkQueue(1)
    assert chunks.put(b"a")
    accepted: list[bool] = []
    thread = threading.Thread(target=lambda: accepted.append(chunks.put(b"b")), daemon=True)
    thread.start()
    time.sleep(0.05)
    chunks.close()
    thread.join(60.0)
    assert accepted == [False]
    assert list(chunks) == [b"a"]
    assert not chunks.put(b"c")


@pytest.mark.parametrize("sizes", [[], [0], [10], [CHUNK_BYTES], [CHUNK_BYTES * 3 + 1, 5], [7] * 9])
def test_chunks_keep_the_bytes_and_stay_below_the_limit(sizes: list[int]) -> None:
    rng = np.random.default_rng(1)
    views = [memoryview(rng.bytes(size)) for size in sizes]
    chunks = list(cut_chunks(b"head", views))
    assert b"".join(chunks) == b"head" + b"".join(views)
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    assert len(chunks) == -(-(4 + sum(sizes)) // CHUNK_BYTES)


def test_bytes_of_arrays_are_seen_without_a_copy() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    view = view_bytes(array)
    array[0, 0] = 9
    assert bytes(view) == array.tobytes()


def test_an_array_with_gaps_is_refused() -> None:
    with pytest.raises(InvariantBroken, match="contiguous"):
        view_bytes(np.zeros((4, 4))[:, ::2])
