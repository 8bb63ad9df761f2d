"""A bounded queue of byte chunks between the thread that talks gRPC and those that do not."""

import threading
from collections import deque
from collections.abc import Iterator


class ChunkQueue:
    """First in, first out; full means that the producer waits, so nothing piles up."""

    def __init__(self, max_chunks: int) -> None:
        self._chunks: deque[bytes] = deque()
        self._max_chunks = max_chunks
        self._changed = threading.Condition()
        self._closed = False

    def put(self, chunk: bytes) -> bool:
        """Append a chunk, waiting for room; return False if the queue is or gets closed."""
        with self._changed:
            while not self._closed and len(self._chunks) >= self._max_chunks:
                self._changed.wait()
            if self._closed:
                return False
            self._chunks.append(chunk)
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """End the queue: waiting producers give up, the consumer gets what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        """Yield chunks until the queue is closed and empty."""
        while True:
            with self._changed:
                while not self._chunks and not self._closed:
                    self._changed.wait()
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            yield chunk
