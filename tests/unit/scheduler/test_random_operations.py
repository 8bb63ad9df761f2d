"""Random operations against a strict worker: the books agree after each, and all ends."""

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SampledToken, SequenceStart, StepKind, StepPlan, StepResult
from glinthawk.scheduler import (
    FinishReason,
    MoveOrder,
    Scheduler,
    SchedulerConfig,
    SequenceGroup,
)
from glinthawk.scheduler.simulation import PageLedger

GEOMETRY = KVGeometry(2, 2, 1, 32, DType.FLOAT16, (None, None), page_tokens=4)
PAGES = 16
LONGEST = 48


class SchedulerMachine(RuleBasedStateMachine):
    """An engine that does anything at any time; every worker is a PageLedger."""

    @initialize(prefills=st.integers(1, 2), budget=st.integers(1, 40), lanes=st.integers(2, 5))
    def begin(self, prefills: int, budget: int, lanes: int) -> None:
        self.scheduler = Scheduler(
            SchedulerConfig(
                geometry=GEOMETRY,
                num_lanes=lanes,
                max_lane_rows=6,
                min_lane_rows=2,
                prefill_tokens=budget,
                prefills_per_worker=prefills,
                max_sequence_length=LONGEST,
                lone_tokens=16,
                default_expected_tokens=2,
            )
        )
        self.ledgers: dict[str, PageLedger] = {}
        self.flying: list[StepPlan] = []
        self.tokens: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}
        self.prompts: dict[int, tuple[str, int]] = {}
        self.had_kv: set[tuple[int | str, int]] = set()
        self.num_recomputed = 0
        self.aborted: set[int] = set()
        self.owners: dict[int, str] = {}
        self.moves: list[MoveOrder] = []
        self.late: list[MoveOrder] = []
        self.num_workers = 0
        self.num_sequences = 0
        self.add_worker()

    @precondition(lambda self: len(self.ledgers) < 3)
    @rule()
    def add_worker(self) -> None:
        name = f"w{self.num_workers}"
        self.num_workers += 1
        self.ledgers[name] = PageLedger(GEOMETRY, PAGES)
        self.scheduler.add_worker(name, PAGES * GEOMETRY.page_bytes)
        self.scheduler.check_integrity()

    @precondition(lambda self: len(self.ledgers) > 1)
    @rule(data=st.data())
    def remove_worker(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.ledgers)))
        del self.ledgers[name]
        self.scheduler.remove_worker(name)
        self.owners = {key: owner for key, owner in self.owners.items() if owner != name}
        stale = [plan for plan in self.flying if plan.worker == name]
        self.flying = [plan for plan in self.flying if plan.worker != name]
        for plan in stale:
            assert self.scheduler.commit(StepResult(plan.lane, plan.step, ())) is None
        self.scheduler.check_integrity()

    @rule(data=st.data(), accepting=st.booleans())
    def drain(self, data: st.DataObject, accepting: bool) -> None:
        self.scheduler.set_accepting(data.draw(st.sampled_from(sorted(self.ledgers))), accepting)

    @rule(prompt=st.integers(1, 24), choices=st.integers(1, 4), output=st.integers(0, 24))
    def add(self, prompt: int, choices: int, output: int) -> None:
        starts = []
        for choice in range(choices):
            self.num_sequences += 1
            tokens = list(range(100, 100 + prompt))
            start = SequenceStart(
                SequenceId(self.num_sequences), tuple(tokens), prompt, SamplingParams(choice=choice)
            )
            starts.append(start)
            self.tokens[start.sequence] = tokens
            self.limits[start.sequence] = prompt + max(1, output)
            self.prompts[start.sequence] = (f"prompt of {starts[0].sequence}", prompt)
        self.scheduler.add(SequenceGroup(tuple(starts), output))
        self.scheduler.check_integrity()

    @rule()
    def plan(self) -> None:
        for plan in self.scheduler.plan():
            self.ledgers[plan.worker].apply(plan)
            self.register(plan)
            self.check_inputs(plan)
            self.flying.append(plan)
        self.scheduler.check_integrity()

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        plan = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        sampled = plan.sequences[plan.samples].tolist()
        fates = data.draw(st.lists(st.integers(0, 9), min_size=len(sampled), max_size=len(sampled)))
        self.finish_step(plan, fates)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.tokens)))
        self.scheduler.abort([SequenceId(sequence)])
        self.aborted.add(sequence)
        self.scheduler.check_integrity()

    @precondition(lambda self: len(self.ledgers) > 1)
    @rule(data=st.data())
    def start_move(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(sorted(self.ledgers)))
        movable = self.scheduler.movable(source)
        if not movable:
            return
        order = self.scheduler.start_move(data.draw(st.sampled_from(movable)).sequence)
        self.scheduler.check_integrity()
        if order is not None:
            assert order.source == source
            assert order.num_tokens == len(self.tokens[order.sequence]) - 1
            assert self.ledgers[source].holds(order)
            self.ledgers[order.target].expect(order)
            self.moves.append(order)

    @precondition(lambda self: self.moves)
    @rule(data=st.data(), is_told=st.booleans(), comes=st.booleans())
    def end_move(self, data: st.DataObject, is_told: bool, comes: bool) -> None:
        """The pages come, or not yet, and the scheduler is told so, or that the copy failed."""
        order = self.moves.pop(data.draw(st.integers(0, len(self.moves) - 1)))
        arrived = comes and self.deliver(order)
        is_current = self.scheduler.end_move(order, arrived=arrived and is_told)
        self.scheduler.check_integrity()
        if is_current and comes:
            assert arrived, "a copy that is still wanted finds its room"
        if not comes:
            self.late.append(order)

    @precondition(lambda self: self.late)
    @rule()
    def come_late(self) -> None:
        """Pages of a copy that was given up come all the same."""
        self.deliver(self.late.pop())

    def deliver(self, order: MoveOrder) -> bool:
        source, target = self.ledgers.get(order.source), self.ledgers.get(order.target)
        if source is None or target is None or not source.holds(order):
            return False
        return target.receive(order)

    def register(self, plan: StepPlan) -> None:
        """Do what the last stage does with its registrations."""
        for sequence in plan.releases:
            if self.owners.get(sequence) == plan.worker:
                del self.owners[sequence]
        for start in plan.registrations:
            self.owners[start.sequence] = plan.worker
        for sequence in plan.sequences[plan.samples].tolist():
            assert self.owners[sequence] == plan.worker, "it is registered"

    def teardown(self) -> None:
        """Whatever happened, everything finishes, and every page comes back."""
        if not hasattr(self, "scheduler"):
            return
        for name in self.ledgers:
            self.scheduler.set_accepting(name, True)
        for order in self.moves:
            self.scheduler.end_move(order, arrived=self.deliver(order))
        for _ in range(3000):
            self.plan()
            if not self.flying:
                break
            plan = self.flying.pop(0)
            self.finish_step(plan, [9] * int(plan.samples.sum()))
        assert not self.scheduler.has_work()
        assert set(self.tokens) <= self.aborted
        stats = self.scheduler.stats()
        assert (stats.kv_used_bytes, stats.kv_demanded_bytes) == (0, 0)
        assert [ledger.used for ledger in self.ledgers.values()] == [0] * len(self.ledgers)

    def finish_step(self, plan: StepPlan, fates: list[int]) -> None:
        sampled, ends = [], {}
        for sequence, fate in zip(plan.sequences[plan.samples].tolist(), fates, strict=True):
            token = 1000 * sequence + len(self.tokens.get(sequence, ()))
            sampled.append(SampledToken(sequence, token, error="nan" if fate == 0 else None))
            if fate == 1:
                ends[sequence] = FinishReason.STOP
        num_again = self.note_kv(plan)
        committed = self.scheduler.commit(StepResult(plan.lane, plan.step, tuple(sampled)), ends)
        assert committed is not None
        assert committed.recomputed_tokens == num_again
        self.num_recomputed += num_again
        assert self.scheduler.stats().recomputed_tokens == self.num_recomputed
        for token in sampled:
            if token.sequence in committed.accepted:
                self.tokens[token.sequence].append(token.token)
        for done in committed.finished:
            tokens = self.tokens.pop(done.sequence)
            is_full = len(tokens) == self.limits[done.sequence]
            assert done.reason is not FinishReason.LENGTH or is_full
        self.scheduler.check_integrity()

    def note_kv(self, plan: StepPlan) -> int:
        """Note the K and V of a step that came back; return how many were there before.

        A prompt is computed for all its choices, but for its last token.
        """
        num_again = 0
        spans = zip(plan.starts.tolist(), plan.counts.tolist(), strict=True)
        for sequence, (start, count) in zip(plan.sequences.tolist(), spans, strict=True):
            prompt, length = self.prompts[sequence]
            for position in range(start, start + count):
                places: set[tuple[int | str, int]] = {(sequence, position)}
                if position < length - 1:
                    places.add((prompt, position))
                num_again += bool(places & self.had_kv)
                self.had_kv |= places
        assert plan.kind is StepKind.PREFILL or not num_again, "decoding computes nothing twice"
        return num_again

    def check_inputs(self, plan: StepPlan) -> None:
        """Every row reads the token that stands at its position."""
        rows = [0, *np.cumsum(plan.counts).tolist()]
        starts = {start.sequence: start for start in plan.registrations}
        for i, sequence in enumerate(plan.sequences.tolist()):
            tokens = self.tokens[sequence]
            first = int(plan.starts[i])
            expected = tokens[first : first + int(plan.counts[i])]
            assert plan.tokens[rows[i] : rows[i + 1]].tolist() == expected
            at_end = first + int(plan.counts[i]) == len(tokens)
            assert bool(plan.samples[i]) == at_end
            if sequence in starts:
                assert list(starts[sequence].tokens) == tokens
        if plan.kind is StepKind.RELEASE:
            assert plan.num_rows == 0
            assert plan.releases


SchedulerMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestSchedulerSurvivesAnything = SchedulerMachine.TestCase
