"""A request on its way through the engine, heard of from the event loop.

The engine's thread must never wait for a client, and the event loop never for the engine: news
cross in a queue, with one wake-up for all that came since the last one.

    engine's thread --take--> news --wake-up--> event loop --wait--> who answers the client
                                                    ^-- the client hung up
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from glinthawk.gateway.detokenize import TextDelta
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.generation import Generation
from glinthawk.gateway.http.reading import wait_for_hang_up
from glinthawk.gateway.requests import ParsedRequest

News = TextDelta | Completion
"""What is heard of a request: text of its choices, then once its end."""


class Call:
    """One open request. Made by `open_call`; used in the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: deque[News] = deque()
        self._is_waking = False
        self._awake = asyncio.Event()
        self._is_hung_up = False

    def take(self, news: News) -> None:
        """Take news; called in the engine's thread."""
        self._news.append(news)
        if not self._is_waking:
            self._is_waking = True
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        self._awake.set()

    async def wait(self, timeout_s: float | None = None) -> list[News]:
        """Return the next news; none if there were none for `timeout_s`.

        Raises:
            ClientDisconnect: the client hung up.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._news and not self._is_hung_up:
                    self._awake.clear()
                    await self._awake.wait()
        if self._is_hung_up:
            raise ClientDisconnect
        return [self._news.popleft() for _ in range(len(self._news))]

    async def finish(self) -> Completion:
        """Return the end of the request.

        Raises:
            ClientDisconnect: the client hung up.
        """
        while True:
            for news in await self.wait():
                if isinstance(news, Completion):
                    return news

    async def watch(self, receive: Receive) -> None:
        """Wait until the client hangs up."""
        await wait_for_hang_up(receive)
        self._is_hung_up = True
        self._awake.set()


@asynccontextmanager
async def open_call(
    generation: Generation,
    key: str,
    request: ParsedRequest,
    receive: Receive,
    *,
    is_heard: bool,
) -> AsyncIterator[Call]:
    """Submit a request; one that has not ended when the block is left is given up.

    is_heard: news of its text are wanted, not only its end.
    """
    call = Call()
    watcher = asyncio.create_task(call.watch(receive))
    generation.submit(key, request, call.take, listener=call.take if is_heard else None)
    try:
        yield call
    finally:
        generation.cancel(key)
        watcher.cancel()
