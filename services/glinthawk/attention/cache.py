"""One epoch's KV cache: pages, the steps under way, and the backend, behind six operations.

    compose   make room for a step, all or nothing
    attend    write one row of K and V a sequence, attend
    store     write the K and V of a prompt's rows
    fetch     read the K and V before a prompt's chunk
    export_page, import_page    a sequence goes to another worker, page by page

Everything that came off the wire is checked here. It knows no peers, queues or epochs.
"""

import numpy as np
import numpy.typing as npt

from glinthawk.attention.arrivals import Arrivals
from glinthawk.attention.interface import WIRE_TYPES, AttentionBackend, Rows
from glinthawk.attention.pages import Growth, PageAllocator
from glinthawk.attention.steps import LiveStep, OutputRing, StepBook, build_live_step
from glinthawk.core.ids import SequenceId
from glinthawk.core.step import StepKind, StepPlan
from glinthawk.errors import CapacityExceeded, InvalidRequest, StateLost
from glinthawk.wire.frames import FrameHeader
from glinthawk.wire.pages import unpack_import

FIRST_SHARE = 4
"""Memory is made ready for this part of the pages before any is used,"""

AHEAD_SHARE = 16
"""and later for this part of them ahead of use."""


class KVCache:
    """Pages and steps over `backend`. One thread owns it.

    Where not said otherwise, operations raise StateLost for what is not here, InvalidRequest
    for what contradicts the step, and ValueError for what the backend's own checks find.
    """

    def __init__(self, backend: AttentionBackend) -> None:
        geometry = backend.geometry
        self.geometry = geometry
        self.backend = backend
        self._allocator = PageAllocator(backend.num_pages, geometry.page_tokens)
        self._steps = StepBook(geometry.num_layers)
        self._arrivals = Arrivals(self._allocator, backend)
        self._rings: dict[int, OutputRing] = {}
        self._num_expected = 0
        self._expect_pages()
        self._kv_columns = geometry.num_kv_heads * geometry.head_dim
        self._q_columns = geometry.num_query_heads * geometry.head_dim

    @property
    def used_bytes(self) -> int:
        """Bytes of pages that somebody holds."""
        return self._allocator.num_used * self.geometry.page_bytes

    @property
    def capacity_bytes(self) -> int:
        """Bytes of all pages."""
        return self._allocator.num_pages * self.geometry.page_bytes

    def page_table(self, sequence: SequenceId) -> list[int]:
        """Return the pages of a sequence, for tests and inspection."""
        return [int(page) for page in self._allocator.page_table(sequence)]

    def check_integrity(self) -> None:
        """Raise InvariantBroken where the books of pages do not agree."""
        self._allocator.check_integrity()

    def must_wait(self, plan: StepPlan) -> bool:
        """Tell whether a fork of `plan` would copy a page whose rows are still on their way."""
        if self._steps.is_composed(plan.lane, plan.step):
            return False
        return self._steps.awaits_rows_of(fork.parent for fork in plan.forks)

    def compose(self, plan: StepPlan) -> None:
        """Apply a step's composition; one that was applied before changes nothing.

        Raises:
            CapacityExceeded: there are too few free pages; nothing changed.
        """
        if self._steps.is_composed(plan.lane, plan.step):
            return
        growth = [
            Growth(SequenceId(sequence), start, count)
            for sequence, start, count in zip(
                plan.sequences.tolist(), plan.starts.tolist(), plan.counts.tolist(), strict=True
            )
        ]
        num_tokens = self._allocator.num_tokens
        given_up = self._arrivals.unfinished(plan.releases)
        rewritten = [rows.sequence for rows in growth if rows.start < num_tokens(rows.sequence)]
        copies = self._allocator.apply(releases=plan.releases, forks=plan.forks, growth=growth)
        if copies is None:
            raise self._full(plan, growth)
        self._expect_pages()
        self._arrivals.give_up(given_up)
        for copy in copies:
            self.backend.copy_page(copy.source, copy.target)
        # Earlier steps must write no more rows where pages were given away, or where a page
        # that was shared has been replaced.
        changed = {*plan.releases, *(rewritten if copies else ())}
        if changed:
            for lane in self._steps.forget(changed):
                self._rings.pop(lane, None)
        step = build_live_step(plan, self._allocator)
        if plan.kind is StepKind.DECODE:
            tables = [self._allocator.page_table(sequence) for sequence in step.sequences]
            step.batch = self.backend.plan(tables, plan.starts.astype(np.int32) + np.int32(1))
        self._steps.add(step)

    def attend(self, header: FrameHeader, payload: memoryview) -> Rows:
        """Write K and V of a decode step's rows, and return its attention [rows, Hq D].

        The rows stay as they are until the peer sends a frame of a later layer.
        """
        step = self._find_whole(header, StepKind.DECODE)
        assert step.batch is not None, "a decode step has a plan"
        q_end = self._q_columns
        k_end = q_end + self._kv_columns
        rows = _view_rows(header, payload, step.num_rows, k_end + self._kv_columns)
        ring = self._rings.setdefault(header.lane, OutputRing())
        output = ring.take(header.step, header.layer, (step.num_rows, q_end), rows.dtype)
        q, k, v = rows[:, :q_end], rows[:, q_end:k_end], rows[:, k_end:]
        self.backend.decode(header.layer, step.batch, q, k, v, output)
        return output

    def store(self, header: FrameHeader, payload: memoryview) -> bool:
        """Write a layer of a prefill step; return whether the step has all its layers now."""
        step = self._find(header, StepKind.PREFILL)
        rows = _view_rows(header, payload, step.num_rows, 2 * self._kv_columns)
        pages, slots = step.pages, step.slots
        if step.kept is not None:
            rows, pages, slots = rows[step.kept], pages[step.kept], slots[step.kept]
        k, v = rows[:, : self._kv_columns], rows[:, self._kv_columns :]
        self.backend.append(header.layer, pages, slots, k, v)
        return self._steps.mark_stored(step, header.layer)

    def fetch(self, header: FrameHeader, payload: memoryview) -> Rows:
        """Return the K and V before a prefill step's rows, sequences packed: [rows, 2 Hkv D]."""
        step = self._find_whole(header, StepKind.PREFILL)
        total = step.num_earlier_rows
        if header.rows != total or payload.nbytes or header.dtype is None:
            raise InvalidRequest(
                f"FETCH of {header.rows} rows with {payload.nbytes} bytes and dtype "
                f"{header.dtype!r}: the step has {total} earlier rows, and a dtype is needed"
            )
        columns = self._kv_columns
        rows: Rows = np.empty((total, 2 * columns), WIRE_TYPES[header.dtype])
        first = 0
        for start, table in zip(step.starts, step.tables, strict=bool(total)):
            k, v = np.split(rows[first : first + start], 2, axis=1)
            self.backend.read(header.layer, table, 0, start, k, v)
            first += start
        return rows

    def export_page(
        self, sequence: SequenceId, num_tokens: int, index: int
    ) -> npt.NDArray[np.uint8] | None:
        """Return the content of the index-th page of a sequence that has `num_tokens` tokens;
        None while rows of it are still on their way from a stage."""
        held = self._allocator.num_tokens(sequence)
        if held != num_tokens:
            raise StateLost(
                f"sequence {sequence} holds {held} tokens here, {num_tokens} are to be copied; "
                "prefill it elsewhere"
            )
        if self._steps.awaits_rows_of([sequence]):
            return None
        return self.backend.export_page(int(self._allocator.page_table(sequence)[index]))

    def import_page(self, header: FrameHeader, payload: memoryview) -> bool:
        """Write a page that another worker sent; return whether the sequence has all of them.

        Raises:
            CapacityExceeded: there is no room for the sequence; nothing changed.
        """
        return self._arrivals.take(unpack_import(header, payload))

    def _expect_pages(self) -> None:
        """Let the backend get memory for pages ahead of use: sequences of one batch often come
        to their next page in the same step. The allocator hands out the lowest pages first."""
        used, total = self._allocator.num_used, self._allocator.num_pages
        expected = min(total, max(total // FIRST_SHARE, used + total // AHEAD_SHARE))
        if expected > self._num_expected:
            self._num_expected = expected
            self.backend.expect(expected)

    def _find(self, header: FrameHeader, kind: StepKind) -> LiveStep:
        step = self._steps.find(header.lane, header.step)
        if step is None:
            raise StateLost(
                f"step {header.step} of lane {header.lane} is not composed here, or its sequences "
                "were released; prefill them again"
            )
        if step.kind is not kind:
            raise InvalidRequest(
                f"{header.kind.name} for step {header.step} of lane {header.lane}, which is a "
                f"{step.kind.name.lower()} step"
            )
        if header.layer >= self.geometry.num_layers:
            raise InvalidRequest(f"layer {header.layer} is not one of {self.geometry.num_layers}")
        return step

    def _find_whole(self, header: FrameHeader, kind: StepKind) -> LiveStep:
        """Return a step all of whose sequences are still here."""
        step = self._find(header, kind)
        lost = step.lost_sequence()
        if lost is not None:
            raise StateLost(f"sequence {lost} was released; prefill it again")
        return step

    def _full(self, plan: StepPlan, growth: list[Growth]) -> CapacityExceeded:
        """Return the error that names what a step wanted and what is free."""
        allocator, geometry = self._allocator, self.geometry
        page_bytes = geometry.page_bytes
        wanted = sum(
            max(
                0,
                geometry.num_pages(rows.start + rows.count)
                - geometry.num_pages(allocator.num_tokens(rows.sequence)),
            )
            for rows in growth
        )
        return CapacityExceeded(
            f"step {plan.step} of lane {plan.lane} wants {wanted} pages more "
            f"({wanted * page_bytes} bytes) beside {len(plan.forks)} forks, "
            f"{allocator.num_free} of {allocator.num_pages} are free "
            f"({allocator.num_free * page_bytes} of {self.capacity_bytes} bytes): try again when "
            "sequences have ended"
        )


def _view_rows(header: FrameHeader, payload: memoryview, num_rows: int, columns: int) -> Rows:
    """Return the payload as [num_rows, columns], without a copy."""
    if header.dtype is None:
        raise InvalidRequest(f"{header.kind.name} has no dtype")
    wire = WIRE_TYPES[header.dtype]
    expected = num_rows * columns * wire.itemsize
    if header.rows != num_rows or payload.nbytes != expected:
        raise InvalidRequest(
            f"{header.kind.name} of {header.rows} rows and {payload.nbytes} bytes for step "
            f"{header.step} of lane {header.lane}, which has {num_rows} rows of {columns} "
            f"{header.dtype.label} numbers: {expected} bytes"
        )
    if not expected:
        return np.empty((num_rows, columns), wire)
    return np.frombuffer(payload, wire).reshape(num_rows, columns)
