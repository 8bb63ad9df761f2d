"""Calls of the store from the event loop, in threads of their own.

A store that is locked, or a slow disk, holds threads up. Those in which requests are parsed and
answers are built must not be among them, nor may reads, which need no lock, wait behind writes.

    event loop --read---> 16 threads --> store        one more waits a while for a place,
               --write--> 16 threads --> store        then it is refused
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from glinthawk.errors import StoreUnavailable

NUM_THREADS = 16
"""Reads, and writes, that are under way at a time."""

PLACE_WAIT_S = 5.0
"""How long a call waits for a place; beyond it a write waits for its turn and for the lock, both
of which have bounds of their own."""

ParamT = ParamSpec("ParamT")
ResultT = TypeVar("ResultT")


class StoreCalls:
    """See the module. Used in one event loop."""

    def __init__(
        self, *, num_threads: int = NUM_THREADS, place_wait_s: float = PLACE_WAIT_S
    ) -> None:
        self._reads = _Places("store-read", num_threads, place_wait_s)
        self._writes = _Places("store-write", num_threads, place_wait_s)

    async def read(
        self, call: Callable[ParamT, ResultT], *args: ParamT.args, **kwargs: ParamT.kwargs
    ) -> ResultT:
        """Return what a call returns that only reads.

        Raises:
            StoreUnavailable: too many are under way.
        """
        return await self._reads.run(partial(call, *args, **kwargs))

    async def write(
        self, call: Callable[ParamT, ResultT], *args: ParamT.args, **kwargs: ParamT.kwargs
    ) -> ResultT:
        """Return what a call returns that may write.

        Raises:
            StoreUnavailable: too many are under way.
        """
        return await self._writes.run(partial(call, *args, **kwargs))


class _Places:
    """Threads, and a line of callers in front of them."""

    def __init__(self, name: str, num_threads: int, wait_s: float) -> None:
        self._num_threads = num_threads
        self._wait_s = wait_s
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(num_threads)

    async def run(self, call: Callable[[], ResultT]) -> ResultT:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise StoreUnavailable(
                f"the store is busy: {self._num_threads} calls are under way, and none ended in "
                f"{self._wait_s:g} s; try again"
            ) from error
        running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        # Also if nobody waits for it any more, its place is taken until it is through.
        running.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(running)
