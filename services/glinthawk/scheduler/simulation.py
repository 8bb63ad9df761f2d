"""A cluster in simulated time, driven by the real scheduler: for tests and for planning.

Stages run what `choose_segment` says, workers serve their frames in order, and every step goes
through a `PageLedger`, which fails on anything that a real worker would refuse.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import SampledToken, StepKind, StepPlan, StepResult
from glinthawk.errors import InvariantBroken
from glinthawk.scheduler.data import FinishReason, MoveOrder
from glinthawk.scheduler.node import ReadyItem, choose_segment
from glinthawk.scheduler.scheduler import Scheduler


class PageLedger:
    """The page tables of one worker, without the pages. Strict: a step that a worker could not
    carry out exactly raises InvariantBroken and changes nothing."""

    def __init__(self, geometry: KVGeometry, num_pages: int) -> None:
        self._geometry = geometry
        self._num_pages = num_pages
        self._tables: dict[int, list[int]] = {}
        self._tokens: dict[int, int] = {}
        self._names = itertools.count()
        self._expected: set[int] = set()
        self._given_up: set[int] = set()

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return len({page for table in self._tables.values() for page in table})

    def apply(self, plan: StepPlan) -> None:
        """Apply releases, then forks, then make room for the rows; all or nothing."""
        tables = {name: list(table) for name, table in self._tables.items()}
        tokens = dict(self._tokens)
        given_up = [name for name in plan.releases if name not in tables]
        for name in plan.releases:
            is_known = name in tables or name in self._expected
            self._require(is_known, plan, f"releases unknown sequence {name}")
            tables.pop(name, None)
            tokens.pop(name, None)
        for fork in plan.forks:
            self._require(fork.child not in tables, plan, f"forks to known {fork.child}")
            self._require(
                tokens.get(fork.parent, 0) >= fork.num_tokens, plan, f"forks from {fork.parent}"
            )
            whole = fork.num_tokens // self._geometry.page_tokens
            tables[fork.child] = tables[fork.parent][:whole]
            if fork.num_tokens % self._geometry.page_tokens:
                tables[fork.child].append(next(self._names))
            tokens[fork.child] = fork.num_tokens
        starts_of = {start.sequence for start in plan.registrations}
        rows = zip(plan.sequences.tolist(), plan.starts.tolist(), plan.counts.tolist(), strict=True)
        for name, start, count in rows:
            if name not in tables:
                self._require(name in starts_of and start == 0, plan, f"writes to unknown {name}")
                tables[name], tokens[name] = [], 0
            self._require(start == tokens[name], plan, f"leaves a gap in {name} at {start}")
            self._write(plan, tables, name, start + count)
            first = start // self._geometry.page_tokens
            for page in tables[name][first:]:
                holders = sum(page in table for table in tables.values())
                self._require(holders == 1, plan, f"writes to a shared page of {name}")
            tokens[name] = start + count
        used = len({page for table in tables.values() for page in table})
        self._require(used <= self._num_pages, plan, f"needs {used} of {self._num_pages} pages")
        self._tables, self._tokens = tables, tokens
        self._given_up.update(given_up)

    def expect(self, order: MoveOrder) -> None:
        """Know that a sequence is on its way here from another worker, and may never come."""
        self._expected.add(order.sequence)

    def holds(self, order: MoveOrder) -> bool:
        """Tell whether a sequence that is to be copied is here, with its tokens."""
        return self._tokens.get(order.sequence) == order.num_tokens

    def receive(self, order: MoveOrder) -> bool:
        """Take a sequence from another worker; False if it was released before, or is full."""
        pages = self._geometry.num_pages(order.num_tokens)
        if order.sequence in self._given_up or self.used + pages > self._num_pages:
            return False
        if order.sequence in self._tables:
            raise InvariantBroken(f"sequence {order.sequence} is here already and comes again")
        self._tables[order.sequence] = [next(self._names) for _ in range(pages)]
        self._tokens[order.sequence] = order.num_tokens
        return True

    def _write(
        self, plan: StepPlan, tables: dict[int, list[int]], name: int, num_tokens: int
    ) -> None:
        missing = self._geometry.num_pages(num_tokens) - len(tables[name])
        self._require(missing >= 0, plan, f"has pages too many for {name}")
        tables[name] += [next(self._names) for _ in range(missing)]

    @staticmethod
    def _require(holds: bool, plan: StepPlan, what: str) -> None:
        if not holds:
            raise InvariantBroken(f"step {plan.step} of lane {plan.lane}: {what}")


@dataclass(frozen=True)
class ClusterModel:
    """Seconds of everything. A segment costs `segment_s` and `row_s` for each row more; prefill
    `segment_s` and `prefill_row_s` a row; attention `attention_token_s` for each KV token of a
    layer; `latency_s` is one way between any two processes."""

    num_stages: int = 1
    layers_per_stage: int = 4
    segment_s: float = 1e-3
    row_s: float = 0.0
    prefill_row_s: float = 2e-5
    attention_token_s: float = 1e-8
    latency_s: float = 0.0


@dataclass(eq=False)
class _Travel:
    """A step on its way; kv_tokens: what attention reads in one layer."""

    plan: StepPlan
    kv_tokens: int


@dataclass
class Report:
    """What a run measured. row_seconds: rows of lanes, integrated over time."""

    seconds: float = 0.0
    row_seconds: float = 0.0
    tokens: int = 0
    stage_busy_s: float = 0.0
    finished_at: dict[SequenceId, float] = field(default_factory=dict)

    @property
    def mean_rows(self) -> float:
        """Mean number of rows in lanes."""
        return self.row_seconds / self.seconds if self.seconds else 0.0


class Simulation:
    """Runs a scheduler against modelled stages and workers.

    `refill(now)` is called before each plan, to add requests. `ends` gives the generated
    length at which a sequence stops by itself.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        model: ClusterModel,
        *,
        refill: Callable[[float], None] = lambda now: None,
        ends: Callable[[SequenceId], int | None] = lambda sequence: None,
    ) -> None:
        self._scheduler = scheduler
        self._model = model
        self._refill = refill
        self._ends = ends
        self._ledgers: dict[str, PageLedger] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ready: list[dict[LaneId, ReadyItem]] = [{} for _ in range(model.num_stages)]
        self._busy = [False] * model.num_stages
        self._worker_free_at: dict[str, float] = {}
        self._travels: dict[LaneId, _Travel] = {}
        self._generated: dict[SequenceId, int] = {}
        self._prefill_first = False
        self.now = 0.0
        self.report = Report()

    def add_worker(self, name: str, num_pages: int) -> None:
        """Add a worker to the scheduler and to the model."""
        geometry = self._scheduler.config.geometry
        self._ledgers[name] = PageLedger(geometry, num_pages)
        self._worker_free_at[name] = 0.0
        self._scheduler.add_worker(name, num_pages * geometry.page_bytes)

    def run(self, until_s: float) -> Report:
        """Run until nothing is in flight, or for `until_s` more simulated seconds."""
        until = self.now + until_s
        self.report = Report(finished_at=self.report.finished_at)
        began = self.now
        if not self._travels:
            self._send_plans()
        while self._events and self._events[0][0] <= until:
            at, _, happen = heapq.heappop(self._events)
            rows = sum(
                t.plan.num_rows for t in self._travels.values() if t.plan.kind is StepKind.DECODE
            )
            self.report.row_seconds += rows * (at - self.now)
            self.now = at
            happen()
        self.report.seconds = self.now - began
        return self.report

    def _at(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), happen))

    def _send_plans(self) -> None:
        self._refill(self.now)
        plans = self._scheduler.plan()
        self._prefill_first = self._scheduler.prefill_first
        for plan in plans:
            self._ledgers[plan.worker].apply(plan)
            kv_tokens = int(plan.starts.sum()) + plan.num_rows
            self._travels[plan.lane] = _Travel(plan, kv_tokens)
            if plan.kind is StepKind.RELEASE:
                self._at(self._model.latency_s, partial(self._finish, plan.lane))
            else:
                self._at(self._model.latency_s, partial(self._arrive, plan.lane, 0))

    def _arrive(self, lane: LaneId, layer: int) -> None:
        stage = layer // self._model.layers_per_stage
        plan = self._travels[lane].plan
        self._ready[stage][lane] = ReadyItem(
            plan.kind, lane, layer, plan.num_rows, next(self._order)
        )
        self._start_segment(stage)

    def _start_segment(self, stage: int) -> None:
        if self._busy[stage]:
            return
        config = self._scheduler.config
        chosen = choose_segment(
            self._ready[stage].values(),
            max_rows=config.max_lane_rows * config.num_lanes,
            prefill_first=self._prefill_first,
        )
        if not chosen:
            return
        rows = sum(item.rows for item in chosen)
        is_prefill = chosen[0].kind is StepKind.PREFILL
        per_row = self._model.prefill_row_s if is_prefill else self._model.row_s
        for item in chosen:
            del self._ready[stage][item.lane]
        self._busy[stage] = True
        seconds = self._model.segment_s + rows * per_row
        self.report.stage_busy_s += seconds
        self._at(seconds, lambda: self._end_segment(stage, chosen))

    def _end_segment(self, stage: int, chosen: tuple[ReadyItem, ...]) -> None:
        self._busy[stage] = False
        for item in chosen:
            delay = 0.0
            if item.kind is StepKind.DECODE:
                delay = self._attend(self._travels[item.lane])
            if item.layer + 1 == self._model.num_stages * self._model.layers_per_stage:
                self._at(delay + self._model.latency_s, partial(self._finish, item.lane))
            else:
                self._at(delay, partial(self._arrive, item.lane, item.layer + 1))
        self._start_segment(stage)

    def _attend(self, travel: _Travel) -> float:
        """Return the seconds until a layer's attention output is back."""
        worker = travel.plan.worker
        begin = max(self.now + self._model.latency_s, self._worker_free_at[worker])
        end = begin + travel.kv_tokens * self._model.attention_token_s
        self._worker_free_at[worker] = end
        return end + self._model.latency_s - self.now

    def _finish(self, lane: LaneId) -> None:
        plan = self._travels.pop(lane).plan
        sampled = [
            SampledToken(SequenceId(sequence), 7)
            for sequence, samples in zip(
                plan.sequences.tolist(), plan.samples.tolist(), strict=True
            )
            if samples
        ]
        ended: dict[SequenceId, FinishReason] = {}
        for token in sampled:
            self._generated[token.sequence] = self._generated.get(token.sequence, 0) + 1
            if self._generated[token.sequence] == self._ends(token.sequence):
                ended[token.sequence] = FinishReason.STOP
        committed = self._scheduler.commit(StepResult(lane, plan.step, tuple(sampled)), ended)
        assert committed is not None
        self.report.tokens += len(committed.accepted)
        for done in committed.finished:
            self.report.finished_at[done.sequence] = self.now
            del self._generated[done.sequence]
        self._send_plans()
