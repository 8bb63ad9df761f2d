"""What the scheduler decides, one behaviour at a time, against a strict worker."""

import itertools

import pytest

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import (
    Fork,
    SampledToken,
    SequenceStart,
    StepKind,
    StepPlan,
    StepResult,
)
from glinthawk.errors import InvalidConfig, InvalidRequest, InvariantBroken
from glinthawk.scheduler import (
    Committed,
    FinishReason,
    LaneTimings,
    Scheduler,
    SchedulerConfig,
    SequenceGroup,
    required_lanes,
)
from glinthawk.scheduler.simulation import PageLedger

GEOMETRY = KVGeometry(2, 2, 1, 32, DType.FLOAT16, (None, None), page_tokens=4)


class Engine:
    """A scheduler, its workers as ledgers, and the steps in flight."""

    def __init__(self, *pages: int, **changes: object) -> None:
        fields: dict[str, object] = {
            "geometry": GEOMETRY,
            "num_lanes": 2,
            "max_lane_rows": 8,
            "min_lane_rows": 2,
            "prefill_tokens": 16,
            "max_sequence_length": 64,
            "lone_tokens": 16,
            "watermark": 0.0,
        }
        self.scheduler = Scheduler(SchedulerConfig(**(fields | changes)))  # type: ignore[arg-type]
        self.ledgers: dict[str, PageLedger] = {}
        self.flying: list[StepPlan] = []
        self.numbers = itertools.count(1)
        for number, num_pages in enumerate(pages):
            self.ledgers[f"w{number}"] = PageLedger(GEOMETRY, num_pages)
            self.scheduler.add_worker(f"w{number}", num_pages * GEOMETRY.page_bytes)

    def add(self, prompt: int, output: int, choices: int = 1) -> list[SequenceId]:
        """Queue a request and return its sequences."""
        tokens = tuple(range(10, 10 + prompt))
        starts = tuple(
            SequenceStart(SequenceId(next(self.numbers)), tokens, prompt, SamplingParams())
            for _ in range(choices)
        )
        self.scheduler.add(SequenceGroup(starts, output))
        return [start.sequence for start in starts]

    def plan(self) -> list[StepPlan]:
        """Plan and send."""
        plans = self.scheduler.plan()
        for plan in plans:
            self.ledgers[plan.worker].apply(plan)
        self.scheduler.check_integrity()
        self.flying += plans
        return plans

    def commit(
        self, plan: StepPlan, ends: dict[SequenceId, FinishReason] | None = None
    ) -> Committed:
        """Bring a step back with token 7 for everybody."""
        self.flying.remove(plan)
        sampled = tuple(
            SampledToken(SequenceId(s), 7) for s in plan.sequences[plan.samples].tolist()
        )
        committed = self.scheduler.commit(StepResult(plan.lane, plan.step, sampled), ends)
        self.scheduler.check_integrity()
        assert committed is not None
        return committed

    def turn(self) -> list[StepPlan]:
        """Bring all steps back, and send the next ones."""
        for plan in list(self.flying):
            self.commit(plan)
        return self.plan()


def timings(away: float) -> LaneTimings:
    """Return timings of a lane that is away for `away` segments."""
    return LaneTimings(away / 4, away / 4, away / 4, away / 4, segment_s=1.0)


@pytest.mark.parametrize(
    ("stages", "away", "lanes"), [(1, 0.5, 2), (1, 3.0, 4), (2, 1.0, 4), (9, 2.5, 36)]
)
def test_lanes_in_flight_cover_the_time_away(stages: int, away: float, lanes: int) -> None:
    assert required_lanes(stages, timings(away)) == lanes


def test_a_segment_of_no_time_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="0"):
        required_lanes(1, LaneTimings(1, 1, 1, 1, 0))


def test_a_configuration_out_of_bounds_is_refused_by_name() -> None:
    with pytest.raises(InvalidConfig, match="num_lanes is 1"):
        SchedulerConfig(geometry=GEOMETRY, num_lanes=1)


def test_a_request_that_can_never_fit_is_refused_with_both_sizes() -> None:
    engine = Engine(5)
    assert engine.scheduler.largest_possible() == 20
    with pytest.raises(InvalidRequest, match=r"needs 21 tokens.*at most 20") as refusal:
        engine.add(11, 10)
    assert refusal.value.param == "max_tokens"
    assert not engine.scheduler.has_work()


def test_what_a_remembered_worker_could_hold_waits_for_it() -> None:
    engine = Engine(5)
    engine.scheduler.remember(10 * GEOMETRY.page_bytes)
    engine.add(21, 10)
    assert engine.plan() == []
    with pytest.raises(InvalidRequest, match=r"needs 41 tokens.*at most 40"):
        engine.add(31, 10)
    assert engine.scheduler.remember(0), "less fits now"
    with pytest.raises(InvalidRequest, match=r"at most 20"):
        engine.add(21, 10)


def test_while_it_is_not_known_who_comes_everything_waits() -> None:
    engine = Engine(5)
    engine.scheduler.remember(None)
    engine.add(50, 10)
    assert engine.scheduler.largest_possible() is None
    assert engine.scheduler.remember(0)
    assert engine.scheduler.largest_possible() == 20


def test_a_prompt_is_prefilled_then_decoded_to_its_length() -> None:
    engine = Engine(20)
    (sequence,) = engine.add(5, 3)
    (prefill,) = engine.plan()
    assert prefill.kind is StepKind.PREFILL
    assert prefill.tokens.tolist() == [10, 11, 12, 13, 14]
    assert [start.sequence for start in prefill.registrations] == [sequence]
    assert engine.commit(prefill).accepted == {sequence}
    (decode,) = engine.plan()
    assert (decode.kind, decode.starts.tolist(), decode.tokens.tolist()) == (
        StepKind.DECODE,
        [5],
        [7],
    )
    assert engine.commit(decode).finished == ()
    (last,) = engine.plan()
    (finished,) = engine.commit(last).finished
    assert (finished.reason, finished.num_generated) == (FinishReason.LENGTH, 3)
    (release,) = engine.plan()
    assert (release.kind, release.releases) == (StepKind.RELEASE, (sequence,))
    assert engine.ledgers["w0"].used == 0


def test_a_job_smaller_than_a_lane_steps_at_once_and_waits_for_nobody() -> None:
    engine = Engine(400, max_lane_rows=256, min_lane_rows=128)
    sequences = set(engine.add(5, 3)) | set(engine.add(6, 3))
    (prefill,) = engine.plan()
    assert set(prefill.sequences.tolist()) == sequences
    engine.commit(prefill)
    (decode,) = engine.plan()
    assert (decode.kind, set(decode.sequences.tolist())) == (StepKind.DECODE, sequences)


def test_several_prompts_share_a_prefill_step_and_a_long_one_goes_in_chunks() -> None:
    engine = Engine(40)
    engine.add(6, 4)
    engine.add(20, 4)
    (first,) = engine.plan()
    assert (first.counts.tolist(), first.samples.tolist()) == ([6, 10], [True, False])
    second = next(plan for plan in engine.turn() if plan.kind is StepKind.PREFILL)
    assert (second.starts.tolist(), second.counts.tolist()) == ([10], [10])
    assert second.samples.tolist() == [True]
    assert second.registrations == ()


def test_prompts_that_wait_fill_the_step_of_a_last_chunk() -> None:
    engine = Engine(60)
    engine.add(20, 4)
    engine.add(5, 4)
    engine.add(6, 4)
    (first,) = engine.plan()
    assert first.counts.tolist() == [16]
    second = next(plan for plan in engine.turn() if plan.kind is StepKind.PREFILL)
    assert (second.starts.tolist(), second.counts.tolist()) == ([16, 0, 0], [4, 5, 6])


def test_a_prompt_is_not_cut_to_fill_the_last_eighth_of_a_prefill_step() -> None:
    engine = Engine(60)
    for prompt in (8, 7, 9, 6, 4):
        engine.add(prompt, 4)
    (first,) = engine.plan()
    assert first.counts.tolist() == [8, 7]
    second = next(plan for plan in engine.turn() if plan.kind is StepKind.PREFILL)
    assert (second.starts.tolist(), second.counts.tolist()) == ([0, 0], [9, 6])
    assert second.samples.tolist() == [True, True]
    third = next(plan for plan in engine.turn() if plan.kind is StepKind.PREFILL)
    assert (third.starts.tolist(), third.counts.tolist()) == ([0], [4])


def test_choices_prefill_once_and_each_runs_the_last_prompt_token() -> None:
    engine = Engine(40, max_lane_rows=8, min_lane_rows=8)
    lead, *others = engine.add(10, 4, choices=3)
    (prefill,) = engine.plan()
    assert prefill.sequences.tolist() == [lead]
    (decode,) = engine.turn()
    assert decode.forks == tuple(Fork(lead, other, 9) for other in others)
    assert decode.starts.tolist() == [10, 9, 9]
    assert decode.tokens.tolist() == [7, 19, 19]
    assert [start.sequence for start in decode.registrations] == others
    assert engine.ledgers["w0"].used == 2 + 3


def test_choices_fork_from_a_choice_that_ended_with_its_first_token() -> None:
    engine = Engine(40, min_lane_rows=8)
    lead, other = engine.add(10, 4, choices=2)
    (prefill,) = engine.plan()
    engine.commit(prefill, {lead: FinishReason.STOP})
    (decode,) = engine.plan()
    assert (decode.sequences.tolist(), decode.releases) == ([other], ())
    (following,) = engine.turn()
    assert following.releases == (lead,)


def test_a_sequence_joins_while_others_are_in_flight() -> None:
    engine = Engine(40, min_lane_rows=8)
    (early,) = engine.add(4, 10)
    engine.plan()
    engine.turn()
    (late,) = engine.add(4, 10)
    engine.turn()
    decode = next(plan for plan in engine.turn() if plan.kind is StepKind.DECODE)
    assert decode.sequences.tolist() == [early, late]


def test_the_youngest_is_set_back_when_pages_run_out_and_continues_from_its_tokens() -> None:
    engine = Engine(7, min_lane_rows=8, default_expected_tokens=1)
    (old,) = engine.add(8, 12)
    (young,) = engine.add(7, 12)
    seen: dict[int, list[StepPlan]] = {old: [], young: []}
    ends: list[int] = []
    for _ in range(60):
        for plan in engine.plan():
            for sequence in plan.sequences.tolist():
                seen[sequence].append(plan)
        for plan in list(engine.flying):
            ends += [done.sequence for done in engine.commit(plan).finished]
    assert ends == [old, young]
    assert engine.scheduler.stats().num_set_back >= 1
    again = [plan for plan in seen[young] if plan.kind is StepKind.PREFILL][1:]
    assert again[0].registrations[0].prompt_tokens == 7
    assert len(again[0].registrations[0].tokens) > 7


def test_a_long_sequence_gets_a_lane_of_its_own() -> None:
    engine = Engine(200, min_lane_rows=2, prefill_tokens=64)
    (long,) = engine.add(50, 10)
    for _ in range(4):
        engine.add(4, 10)
    for _ in range(4):
        plans = engine.turn()
    alone = [plan for plan in plans if long in plan.sequences.tolist()]
    assert [plan.num_rows for plan in alone] == [1]


def test_lanes_of_a_worker_carry_about_the_same_tokens() -> None:
    engine = Engine(400, prefill_tokens=200, lone_tokens=1000)
    for prompt in (20, 10, 10, 5, 5, 20, 10, 20, 20, 10):
        engine.add(prompt, 10)
    for _ in range(4):
        plans = engine.turn()
    totals = [int(plan.starts.sum()) for plan in plans]
    assert len(totals) == 2
    assert max(totals) <= 1.3 * min(totals)


def test_prompts_go_to_the_worker_with_the_most_free_memory() -> None:
    engine = Engine(30, 60)
    engine.add(8, 8)
    (prefill,) = engine.plan()
    assert prefill.worker == "w1"


def test_a_draining_worker_gets_nothing_new() -> None:
    engine = Engine(30, 60)
    engine.scheduler.set_accepting("w1", False)
    engine.add(8, 8)
    (prefill,) = engine.plan()
    assert prefill.worker == "w0"


def test_sequences_of_a_lost_worker_are_recomputed_elsewhere_and_its_steps_are_void() -> None:
    engine = Engine(30, 60)
    (sequence,) = engine.add(8, 8)
    engine.plan()
    (lost,) = engine.turn()
    assert engine.scheduler.remove_worker("w1") == (sequence,)
    assert engine.scheduler.commit(StepResult(lost.lane, lost.step, ())) is None
    (again,) = engine.plan()
    assert (again.worker, again.tokens.tolist()) == ("w0", [*range(10, 18), 7])


def test_an_aborted_sequence_in_flight_ends_when_its_step_is_back() -> None:
    engine = Engine(30)
    (sequence,) = engine.add(4, 8)
    (prefill,) = engine.plan()
    engine.scheduler.abort([sequence])
    committed = engine.commit(prefill)
    assert (committed.accepted, committed.finished) == (frozenset(), ())
    (release,) = engine.plan()
    assert release.releases == (sequence,)
    assert not engine.scheduler.has_work()


def test_a_row_that_failed_ends_its_sequence_with_an_error() -> None:
    engine = Engine(30)
    (sequence,) = engine.add(4, 8)
    (prefill,) = engine.plan()
    row = SampledToken(sequence, 0, error="logit 3 is not finite")
    committed = engine.scheduler.commit(StepResult(prefill.lane, prefill.step, (row,)))
    assert committed is not None
    assert [done.reason for done in committed.finished] == [FinishReason.ERROR]
    assert committed.accepted == frozenset()


def test_a_result_without_a_token_that_is_due_is_a_defect() -> None:
    engine = Engine(30)
    engine.add(4, 8)
    (prefill,) = engine.plan()
    with pytest.raises(InvariantBroken, match="no token"):
        engine.scheduler.commit(StepResult(prefill.lane, prefill.step, ()))


def test_demand_counts_half_the_expected_rest_and_only_as_many_as_have_rows() -> None:
    engine = Engine(max_lane_rows=2, default_expected_tokens=8)
    for _ in range(100):
        engine.add(8, 8)
    stats = engine.scheduler.stats()
    assert stats.kv_demanded_bytes == 2 * 2 * 3 * GEOMETRY.page_bytes
    assert (stats.kv_used_bytes, stats.kv_capacity_bytes) == (0, 0)


def test_prefill_comes_first_only_while_lanes_are_short_of_sequences() -> None:
    engine = Engine(200, max_lane_rows=8, min_lane_rows=1, prefill_tokens=64)
    assert not engine.scheduler.prefill_first
    for _ in range(16):
        engine.add(4, 30)
    assert engine.scheduler.prefill_first
    engine.plan()
    engine.turn()
    engine.add(4, 30)
    assert not engine.scheduler.prefill_first
