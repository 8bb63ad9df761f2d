"""From a body that arrives to a store that blocks: the store pulls, in a thread of its own.

So a client that sends faster than the disk writes is slowed down, one that sends slowly holds up
nobody else, and nothing is held but the piece on its way.

    event loop: read() <--ask-- thread: store.add_file(pieces)
                  `---piece-->
"""

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import ClientDisconnect

ResultT = TypeVar("ResultT")

_CHECK_EVERY_S = 1.0


class _Pieces:
    """What `read` returns until it returns nothing, for another thread to iterate over."""

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._pull: concurrent.futures.Future[bytes] | None = None
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._next():
            yield piece

    def _next(self) -> bytes:
        asked = self._read_open()
        try:
            pull = self._pull = asyncio.run_coroutine_threadsafe(asked, self._loop)
        except RuntimeError as error:  # the loop has ended
            asked.close()
            raise ClientDisconnect from error
        while True:
            done, _ = concurrent.futures.wait([pull], timeout=_CHECK_EVERY_S)
            if done:
                return pull.result()
            if self._is_closed:
                raise ClientDisconnect

    async def _read_open(self) -> bytes:
        if self._is_closed:
            raise ClientDisconnect
        return await self._read()

    def close(self) -> None:
        """Let the thread go; called in the event loop."""
        self._is_closed = True
        if self._pull is not None:
            self._pull.cancel()


async def keep_pieces(
    read: Callable[[], Awaitable[bytes]], keep: Callable[[Iterable[bytes]], ResultT]
) -> ResultT:
    """Return what `keep` makes of the pieces that `read` returns; what either raises is raised."""
    pieces = _Pieces(read)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, keep, pieces)
    finally:
        pieces.close()
        executor.shutdown(wait=False)
