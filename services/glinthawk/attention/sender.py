"""Sends a sequence's pages to another worker, when the gateway asks for it.

    gateway --Pages.Send--> [ sender, thread of the call ] --IMPORT--> other worker
                                 | one page after the other
                            compute thread, between two frames

The compute thread only copies a page out at a time, so lanes go on. A connection to another
worker is kept for the next sequence; it carries one copy at a time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from glinthawk.attention.worker import AttentionWorker
from glinthawk.core.ids import SequenceId
from glinthawk.errors import GlinthawkError, InvalidRequest, InvariantBroken, PeerUnavailable
from glinthawk.telemetry.logging import get_logger
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.failures import decode_failure
from glinthawk.wire.frames import FrameKind
from glinthawk.wire.messages import View
from glinthawk.wire.pages import PagesSent, PagesToSend, import_header, pack_import
from glinthawk.wire.time_limit import cut_off_after
from glinthawk.wire.transport import Connection

log = get_logger("attention.sender")

PAGES_AHEAD = 2
"""Pages that are copied out while one is sent."""

LOOK_AGAIN_S = 0.005
"""Rows of a prompt that are still on their way are looked for so often."""

Content = npt.NDArray[np.uint8]
TimeLeft = Callable[[], float]


@dataclass(frozen=True)
class PageWanted:
    """An item for the compute thread: a page to be copied out; see `AttentionWorker.export_page`.

    content: becomes the page, or the error.
    """

    epoch: int
    sequence: SequenceId
    num_tokens: int
    index: int
    content: "Future[Content | None]" = field(default_factory=Future)

    def settle(self, worker: AttentionWorker) -> None:
        """Copy the page out, in the compute thread."""
        try:
            page = worker.export_page(self.epoch, self.sequence, self.num_tokens, self.index)
        except GlinthawkError as error:
            self.content.set_exception(error)
        except (ValueError, IndexError) as error:
            # What the backend's own checks find.
            self.content.set_exception(InvalidRequest(f"page {self.index}: {error}"))
        else:
            self.content.set_result(page)


class PageSender:
    """Copies sequences of one worker to others.

    name: of this worker. post: hands an item to the compute thread. page_tokens: of the cache;
    None while there is none. dial_options: the time limit of them is not used.
    """

    def __init__(
        self,
        name: str,
        post: Callable[[PageWanted], None],
        page_tokens: Callable[[], int | None],
        dial_options: DialOptions,
    ) -> None:
        self._name = name
        self._post = post
        self._page_tokens = page_tokens
        self._dial_options = dial_options
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, int], list[Connection]] = {}

    def send(self, order: PagesToSend, time_left: TimeLeft) -> PagesSent:
        """Copy a sequence, and return once the target has all of it.

        Raises:
            PeerUnavailable: the time is over, or the target does not answer.
            StateLost: this worker does not hold the sequence, or has begun anew.
            GlinthawkError: the target refused it, with its reason.
        """
        page_tokens = self._page_tokens()
        if page_tokens is None or not order.num_tokens:
            raise InvalidRequest(f"{order.num_tokens} tokens of {self._name} cannot be copied")
        started = time.monotonic()
        num_pages = -(-order.num_tokens // page_tokens)
        with (
            self._connection(order, time_left) as connection,
            cut_off_after(time_left(), connection.close),
        ):
            num_bytes = 0
            for index, content in enumerate(self._export(order, num_pages, time_left)):
                connection.send(import_header(order), pack_import(order, index), content)
                num_bytes += content.nbytes
            self._await_answer(connection, order)
        log.info(
            "sequence_copied",
            sequence=order.sequence,
            target=order.target,
            pages=num_pages,
            bytes=num_bytes,
            seconds=round(time.monotonic() - started, 4),
        )
        return PagesSent(num_pages, num_bytes)

    def follow(self, view: View) -> None:
        """Close the connections to workers that are gone or have begun anew."""
        wanted = {(member.address, member.epoch) for member in view.workers}
        with self._lock:
            gone = [key for key in self._idle if key not in wanted]
            connections = [item for key in gone for item in self._idle.pop(key)]
        for connection in connections:
            connection.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            connections = [item for items in self._idle.values() for item in items]
            self._idle.clear()
        for connection in connections:
            connection.close()

    @contextmanager
    def _connection(self, order: PagesToSend, time_left: TimeLeft) -> Iterator[Connection]:
        """Lend a connection to the target; one over which a copy failed is not used again."""
        key = (order.target_address, order.target_epoch)
        with self._lock:
            idle = self._idle.get(key)
            connection = idle.pop() if idle else None
        if connection is None:
            options = replace(self._dial_options, timeout_s=_require_time(time_left, order))
            connection = dial(order.target_address, self._name, order.target_epoch, options)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.setdefault(key, []).append(connection)

    def _export(self, order: PagesToSend, num_pages: int, time_left: TimeLeft) -> Iterator[Content]:
        """Yield the pages in order, the next ones on their way."""
        waiting: deque[tuple[int, PageWanted]] = deque()
        asked = 0
        while asked < num_pages or waiting:
            while asked < num_pages and len(waiting) < PAGES_AHEAD:
                waiting.append((asked, self._ask(order, asked)))
                asked += 1
            index, wanted = waiting.popleft()
            content = self._await_page(wanted, order, time_left)
            while content is None:
                time.sleep(LOOK_AGAIN_S)
                content = self._await_page(self._ask(order, index), order, time_left)
            yield content

    def _ask(self, order: PagesToSend, index: int) -> PageWanted:
        wanted = PageWanted(order.source_epoch, order.sequence, order.num_tokens, index)
        self._post(wanted)
        return wanted

    def _await_page(
        self, wanted: PageWanted, order: PagesToSend, time_left: TimeLeft
    ) -> Content | None:
        try:
            return wanted.content.result(_require_time(time_left, order))
        except FutureTimeout as error:
            raise _too_late(order) from error

    def _await_answer(self, connection: Connection, order: PagesToSend) -> None:
        header, payload = connection.receive()
        if header.kind is FrameKind.FAILED:
            raise decode_failure(payload)
        if (header.kind, header.step) != (FrameKind.IMPORTED, order.number):
            raise InvariantBroken(
                f"{connection.peer} answered copy {order.number} with {header.kind.name} of "
                f"{header.step}"
            )


def _require_time(time_left: TimeLeft, order: PagesToSend) -> float:
    seconds = time_left()
    if seconds <= 0.0:
        raise _too_late(order)
    return seconds


def _too_late(order: PagesToSend) -> PeerUnavailable:
    return PeerUnavailable(
        f"sequence {order.sequence} was not copied to {order.target} by the deadline of the call"
    )
