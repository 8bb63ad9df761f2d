"""Sequences whose pages are on their way here from another worker.

Pages come in order. What was released before all of it came is never taken again: the gateway
gave that copy up, and a late page of it must not hold memory that nobody will ever free.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from glinthawk.attention.interface import AttentionBackend
from glinthawk.attention.pages import Growth, PageAllocator
from glinthawk.core.ids import SequenceId
from glinthawk.errors import CapacityExceeded, InvalidRequest, StateLost
from glinthawk.wire.pages import PageArrival

MOST_REFUSED = 65536
"""Copies given up that are remembered. A page is late by seconds, not by so many copies."""


@dataclass
class _Copy:
    """One copy under way. due: index of the page that comes next."""

    number: int
    num_tokens: int
    due: int = 0


class Arrivals:
    """The copies to one cache. Whoever owns the cache calls it."""

    def __init__(self, allocator: PageAllocator, backend: AttentionBackend) -> None:
        self._allocator = allocator
        self._backend = backend
        self._copies: dict[SequenceId, _Copy] = {}
        self._refused: dict[SequenceId, None] = {}

    def take(self, page: PageArrival) -> bool:
        """Write a page; with a sequence's first one, make room for all. Return whether it was
        the last.

        Raises:
            CapacityExceeded: there is no room; nothing changed.
            StateLost: the copy was given up.
            InvalidRequest: it is no page that is due.
            ValueError: its content has not the size of a page.
        """
        copy = self._begin(page) if page.index == 0 else self._find(page)
        table = self._allocator.page_table(page.sequence)
        content = np.frombuffer(page.content, np.uint8)
        self._backend.import_page(int(table[page.index]), content)
        copy.due += 1
        if copy.due < len(table):
            return False
        del self._copies[page.sequence]
        return True

    def unfinished(self, released: Iterable[SequenceId]) -> list[SequenceId]:
        """Return those of `released` that are not here, or not whole: copies given up."""
        return [
            sequence
            for sequence in released
            if sequence in self._copies or not self._allocator.num_tokens(sequence)
        ]

    def give_up(self, sequences: Iterable[SequenceId]) -> None:
        """Take nothing more for sequences whose pages have been released."""
        for sequence in sequences:
            self._copies.pop(sequence, None)
            self._refused[sequence] = None
        for sequence in list(self._refused)[: max(0, len(self._refused) - MOST_REFUSED)]:
            del self._refused[sequence]

    def _begin(self, page: PageArrival) -> _Copy:
        sequence = page.sequence
        if sequence in self._refused:
            raise StateLost(f"the copy of sequence {sequence} was given up before it came")
        if self._allocator.num_tokens(sequence):
            raise InvalidRequest(
                f"sequence {sequence} has {self._allocator.num_tokens(sequence)} tokens here "
                "already; a copy of it is not taken"
            )
        if len(page.content) != self._backend.geometry.page_bytes:
            raise InvalidRequest(
                f"a page of {len(page.content)} bytes came, pages here have "
                f"{self._backend.geometry.page_bytes}"
            )
        growth = [Growth(sequence, 0, page.num_tokens)]
        if self._allocator.apply(growth=growth) is None:
            wanted = self._backend.geometry.num_pages(page.num_tokens)
            raise CapacityExceeded(
                f"the copy of sequence {sequence} wants {wanted} pages, "
                f"{self._allocator.num_free} of {self._allocator.num_pages} are free: move it "
                "elsewhere"
            )
        copy = self._copies[sequence] = _Copy(page.number, page.num_tokens)
        return copy

    def _find(self, page: PageArrival) -> _Copy:
        copy = self._copies.get(page.sequence)
        if copy is None:
            raise StateLost(f"the copy of sequence {page.sequence} is not under way here")
        expected = (copy.number, copy.num_tokens, copy.due)
        if (page.number, page.num_tokens, page.index) != expected:
            raise InvalidRequest(
                f"page {page.index} of sequence {page.sequence} came (copy {page.number}, "
                f"{page.num_tokens} tokens); due is page {copy.due} (copy {copy.number}, "
                f"{copy.num_tokens} tokens)"
            )
        return copy
