"""Pages of a worker's arena: who holds which, reference-counted, all or nothing.

A sequence of t tokens holds ceil(t / page_tokens) pages. A fork shares the whole pages of its
parent and copies a partly filled last one at once, so that nobody writes into a page that
another reads:

    parent  40 tokens   | page 3: tokens 0-31 | page 7: tokens 32-39 |
    child of 36 tokens  | page 3 (shared)     | page 9: copy of 7    |

This room knows page numbers only; whoever calls it copies the bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glinthawk.core.ids import SequenceId
from glinthawk.core.step import Fork
from glinthawk.errors import InvariantBroken, StateLost

Int32s = npt.NDArray[np.int32]


class PageCopy(NamedTuple):
    """An order to copy all layers of page `source` over page `target`."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Rows about to be written: tokens [start, start + count) of `sequence`."""

    sequence: SequenceId
    start: int
    count: int


@dataclass
class _Table:
    """The pages of one sequence: an int32 array that grows, and the tokens in it."""

    num_tokens: int = 0
    num_pages: int = 0
    buffer: Int32s = field(default_factory=lambda: np.empty(8, np.int32))

    @property
    def pages(self) -> Int32s:
        return self.buffer[: self.num_pages]

    def extend(self, pages: list[int]) -> None:
        total = self.num_pages + len(pages)
        if total > len(self.buffer):
            grown = np.empty(max(total, 2 * len(self.buffer)), np.int32)
            grown[: self.num_pages] = self.pages
            self.buffer = grown
        self.buffer[self.num_pages : total] = pages
        self.num_pages = total


@dataclass
class _TableDraft:
    """What a transaction makes of a table, apart from it until committed."""

    base: Int32s
    num_tokens: int
    replaced: dict[int, int] = field(default_factory=dict)
    appended: list[int] = field(default_factory=list)

    @property
    def num_pages(self) -> int:
        return len(self.base) + len(self.appended)

    def page(self, index: int) -> int:
        if index >= len(self.base):
            return self.appended[index - len(self.base)]
        return self.replaced.get(index, int(self.base[index]))

    def replace(self, index: int, page: int) -> None:
        if index >= len(self.base):
            self.appended[index - len(self.base)] = page
        else:
            self.replaced[index] = page


class PageAllocator:
    """Owner of `num_pages` pages of `page_tokens` tokens each.

    Not safe for several threads. `check_integrity` may be called at any time.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        if num_pages < 1 or page_tokens < 1:
            raise ValueError(
                f"num_pages {num_pages} and page_tokens {page_tokens} must be at least 1"
            )
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        # Taken from the end: pages come in ascending order, so a prompt lies in one piece.
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._tables: dict[SequenceId, _Table] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages that at least one sequence holds."""
        return self.num_pages - len(self._free)

    @property
    def sequences(self) -> tuple[SequenceId, ...]:
        """Sequences that hold pages."""
        return tuple(self._tables)

    def num_tokens(self, sequence: SequenceId) -> int:
        """Return the tokens that `sequence` holds, 0 if it is unknown."""
        table = self._tables.get(sequence)
        return 0 if table is None else table.num_tokens

    def page_table(self, sequence: SequenceId) -> Int32s:
        """Return the pages of `sequence` in order of their tokens; valid until it changes.

        Raises:
            StateLost: the sequence holds nothing here.
        """
        table = self._tables.get(sequence)
        if table is None:
            raise StateLost(f"sequence {sequence} holds no pages here; prefill it again")
        return table.pages

    def locate(self, sequence: SequenceId, start: int, stop: int) -> tuple[Int32s, Int32s]:
        """Return page and slot of tokens [start, stop) of `sequence`.

        Raises:
            StateLost: the sequence does not hold them.
        """
        pages = self.page_table(sequence)
        if not 0 <= start <= stop <= self.num_tokens(sequence):
            raise StateLost(
                f"sequence {sequence} holds {self.num_tokens(sequence)} tokens, "
                f"not {start} to {stop}; prefill it again"
            )
        token = np.arange(start, stop, dtype=np.int32)
        page_tokens = np.int32(self.page_tokens)
        return pages[token // page_tokens], token % page_tokens

    def apply(
        self,
        *,
        releases: Iterable[SequenceId] = (),
        forks: Sequence[Fork] = (),
        growth: Iterable[Growth] = (),
    ) -> tuple[PageCopy, ...] | None:
        """Release, then fork, then make room for rows: all of it, or nothing.

        Applying the same again changes nothing: unknown releases and known children are passed
        over, and tokens that are there may be written again. A write into a page that another
        sequence holds as well gets a page of its own first.

        Returns:
            The copies to make, in this order, before any row is written; None when there are
            too few free pages, and nothing changed.

        Raises:
            StateLost: a parent or the tokens before a growth are not here; nothing changed.
        """
        draft = _Draft(self.page_tokens, self._free, self._holders, self._tables)
        for sequence in releases:
            draft.release(sequence)
        for fork in forks:
            draft.fork(fork)
        for rows in growth:
            draft.grow(rows)
        if draft.num_taken > len(self._free):
            return None
        self._commit(draft)
        return tuple(draft.copies)

    def check_integrity(self) -> None:
        """Recount everything from the page tables.

        Raises:
            InvariantBroken: the books do not agree.
        """
        holders = [0] * self.num_pages
        for sequence, table in self._tables.items():
            if table.num_pages != -(-table.num_tokens // self.page_tokens):
                raise InvariantBroken(
                    f"sequence {sequence} has {table.num_pages} pages for "
                    f"{table.num_tokens} tokens of {self.page_tokens} a page"
                )
            for page in table.pages.tolist():
                holders[page] += 1
        if holders != self._holders:
            raise InvariantBroken("page holder counts differ from the page tables")
        free = {page for page, count in enumerate(holders) if count == 0}
        if len(self._free) != len(free) or set(self._free) != free:
            raise InvariantBroken(
                f"the free list has {len(self._free)} pages, {len(free)} are held by nobody"
            )

    def _commit(self, draft: "_Draft") -> None:
        if draft.num_taken:
            del self._free[-draft.num_taken :]
        self._free.extend(draft.freed)
        for page, count in draft.holders.items():
            self._holders[page] = count
        for sequence, change in draft.tables.items():
            if change is None:
                self._tables.pop(sequence, None)
                continue
            table = self._tables.get(sequence)
            if table is None or sequence in draft.restarted:
                table = self._tables[sequence] = _Table()
                table.extend(change.base.tolist())
            for index, page in change.replaced.items():
                table.buffer[index] = page
            table.extend(change.appended)
            table.num_tokens = change.num_tokens


class _Draft:
    """A transaction that reads the allocator and writes beside it."""

    def __init__(
        self,
        page_tokens: int,
        free: list[int],
        holders: list[int],
        tables: dict[SequenceId, _Table],
    ) -> None:
        self._page_tokens = page_tokens
        self._free = free
        self._holders = holders
        self._tables = tables
        self.num_taken = 0  # from the end of the free list; may exceed it, then it is full
        self.freed: list[int] = []
        self.holders: dict[int, int] = {}
        self.tables: dict[SequenceId, _TableDraft | None] = {}
        self.restarted: set[SequenceId] = set()
        self.copies: list[PageCopy] = []

    def release(self, sequence: SequenceId) -> None:
        table = self._find(sequence)
        if table is None:
            return
        for index in range(table.num_pages):
            self._drop(table.page(index))
        self.tables[sequence] = None
        self.restarted.add(sequence)

    def fork(self, fork: Fork) -> None:
        if self._find(fork.child) is not None:
            return
        parent = self._find(fork.parent)
        if parent is None or parent.num_tokens < fork.num_tokens:
            held = 0 if parent is None else parent.num_tokens
            raise StateLost(
                f"sequence {fork.parent} holds {held} tokens, its fork {fork.child} needs "
                f"{fork.num_tokens}; prefill it again"
            )
        child = _TableDraft(np.empty(0, np.int32), fork.num_tokens)
        whole, rest = divmod(fork.num_tokens, self._page_tokens)
        for index in range(whole):
            page = parent.page(index)
            self.holders[page] = self._count(page) + 1
            child.appended.append(page)
        if rest:
            child.appended.append(self._copy(parent.page(whole)))
        self.tables[fork.child] = child

    def grow(self, rows: Growth) -> None:
        table = self._find(rows.sequence)
        held = 0 if table is None else table.num_tokens
        if rows.start > held:
            raise StateLost(
                f"sequence {rows.sequence} holds {held} tokens, rows start at {rows.start}; "
                "prefill it again"
            )
        if table is None:
            table = _TableDraft(np.empty(0, np.int32), 0)
        self.tables[rows.sequence] = table
        stop = rows.start + rows.count
        first, end = rows.start // self._page_tokens, -(-stop // self._page_tokens)
        for index in range(first, min(end, table.num_pages)):
            page = table.page(index)
            if self._count(page) > 1:
                table.replace(index, self._copy(page))
                self._drop(page)
        for _ in range(table.num_pages, end):
            table.appended.append(self._take())
        table.num_tokens = max(held, stop)

    def _find(self, sequence: SequenceId) -> _TableDraft | None:
        if sequence in self.tables:
            return self.tables[sequence]
        table = self._tables.get(sequence)
        return None if table is None else _TableDraft(table.pages, table.num_tokens)

    def _count(self, page: int) -> int:
        count = self.holders.get(page)
        return self._holders[page] if count is None else count

    def _take(self) -> int:
        if self.freed:
            page = self.freed.pop()
        else:
            self.num_taken += 1
            # Past the end the draft is thrown away: any page will do.
            page = self._free[-self.num_taken] if self.num_taken <= len(self._free) else 0
        self.holders[page] = 1
        return page

    def _copy(self, source: int) -> int:
        target = self._take()
        self.copies.append(PageCopy(source, target))
        return target

    def _drop(self, page: int) -> None:
        count = self._count(page) - 1
        self.holders[page] = count
        if count == 0:
            self.freed.append(page)
