"""What a store that does not answer holds up: its own calls, each for a bounded time."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from glinthawk.errors import NotFound, StoreUnavailable
from glinthawk.gateway.http.store_calls import StoreCalls
from unit.gateway.http.serving import BODY, CHAT, WAIT_S, Served, serve

NUM_WRITERS = 60
"""More than an event loop has threads by default."""


def test_reads_go_on_while_all_writes_hang_and_one_more_write_is_refused() -> None:
    goes_on = threading.Event()

    async def run() -> None:
        calls = StoreCalls(num_threads=2, place_wait_s=0.1)
        hanging = [asyncio.create_task(calls.write(goes_on.wait, WAIT_S)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="busy: 2 calls are under way"):
            await calls.write(int, "3")
        assert await calls.read(int, "3") == 3
        goes_on.set()
        assert await asyncio.gather(*hanging) == [True, True]
        assert await calls.write(int, "4") == 4

    asyncio.run(run())


def test_the_place_of_a_call_that_nobody_waits_for_is_free_when_it_is_through() -> None:
    goes_on = threading.Event()

    async def run() -> None:
        calls = StoreCalls(num_threads=1, place_wait_s=0.1)
        left = asyncio.create_task(calls.write(goes_on.wait, WAIT_S))
        await asyncio.sleep(0.05)
        left.cancel()
        with pytest.raises(StoreUnavailable):
            await calls.write(int, "3")
        goes_on.set()
        await asyncio.sleep(0.2)
        assert await calls.write(int, "3") == 3

    asyncio.run(run())


def test_an_error_of_the_store_reaches_the_caller() -> None:
    def fail() -> None:
        raise NotFound("there is no file")

    async def run() -> None:
        calls = StoreCalls(num_threads=1)
        for _ in range(3):
            with pytest.raises(NotFound, match="no file"):
                await calls.write(fail)

    asyncio.run(run())


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Served]:
    """A gateway whose database another process has locked, with many writes that wait for it."""
    with serve(tmp_path) as served, ThreadPoolExecutor(NUM_WRITERS) as threads:
        other = sqlite3.connect(
            tmp_path / "glinthawk.db", isolation_level=None, check_same_thread=False
        )
        other.execute("BEGIN IMMEDIATE")
        answers = [threads.submit(try_to_delete, served.url) for _ in range(NUM_WRITERS)]
        time.sleep(1.0)
        try:
            yield served
            check_all_refused(answers)
        finally:
            other.execute("ROLLBACK")
            other.close()


def try_to_delete(url: str) -> tuple[httpx.Response, float]:
    began_s = time.monotonic()
    answer = httpx.delete(f"{url}/v1/files/file-{'0' * 32}", timeout=WAIT_S)
    return answer, time.monotonic() - began_s


def check_all_refused(answers: list[Future[tuple[httpx.Response, float]]]) -> None:
    for waiting in answers:
        answer, waited_s = waiting.result()
        assert answer.status_code == 503
        assert "the store is" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]
        assert waited_s < 60.0


def test_a_locked_store_stalls_neither_generation_nor_reads(locked: Served) -> None:
    began_s = time.monotonic()
    answer = locked.http.post(CHAT, json=BODY)
    assert answer.status_code == 200
    assert locked.http.get("/v1/files").status_code == 200
    assert time.monotonic() - began_s < 5.0
