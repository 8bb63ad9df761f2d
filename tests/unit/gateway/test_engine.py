"""The engine loop over the real scheduler, with a script in the place of the tiers."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.step import SampledToken, StepKind, StepPlan, StepResult
from glinthawk.errors import GlinthawkError, InvariantBroken, PeerUnavailable
from glinthawk.gateway.detokenize import TextDelta
from glinthawk.gateway.engine import Completion, Engine
from glinthawk.gateway.prompts import Prompt
from glinthawk.gateway.requests import Endpoint, ParsedRequest
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.scheduler import MoveOrder, Scheduler, SchedulerConfig
from glinthawk.telemetry.metrics import ServiceMetrics
from unit.gateway.factories import END, ByteTokenizer, make_choice, make_request

GEOMETRY = KVGeometry(2, 4, 2, 32, DType.FLOAT16, (None, None))
WAIT_S = 10


class Tiers:
    """Answers every step: token k of a sequence is script[k], the same for all sequences."""

    def __init__(self, script: bytes | list[int], prompt_tokens: int) -> None:
        self.script = list(script)
        self.prompt_tokens = prompt_tokens
        self.sampled = 0
        self.fail_at: int | None = None
        self.engine: Engine | None = None

    def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
        assert self.engine is not None
        sampled = tuple(
            self._sample(plan, row) for row in range(len(plan.sequences)) if plan.samples[row]
        )
        self.sampled += len(sampled)
        self.engine.take_result(StepResult(plan.lane, plan.step, sampled))

    def reset_worker(self, name: str, epoch: int, error: GlinthawkError) -> None:
        raise AssertionError("no step fails here")

    def copy_pages(
        self, order: MoveOrder, *, source_epoch: int, target_epoch: int, timeout_s: float
    ) -> None:
        raise AssertionError("no worker drains here")

    def release_worker(self, name: str) -> None:
        raise AssertionError("no worker asks to end here")

    def _sample(self, plan: StepPlan, row: int) -> SampledToken:
        place = int(plan.starts[row] + plan.counts[row]) - self.prompt_tokens
        error = "a logit is not finite" if place == self.fail_at else None
        token = self.script[min(place, len(self.script) - 1)]
        return SampledToken(plan.sequences[row], token, error=error)


def run_engine(
    requests: list[ParsedRequest],
    tiers: Tiers,
    act: Callable[[Engine], None] | None = None,
    listen: Callable[[int, TextDelta], None] | None = None,
) -> tuple[dict[Any, Completion], Engine, Scheduler]:
    """Run until every request is done, or the engine failed."""
    scheduler = Scheduler(SchedulerConfig(geometry=GEOMETRY, max_sequence_length=200))
    done: dict[Any, Completion] = {}
    all_done = threading.Event()

    def on_done(completion: Completion) -> None:
        assert completion.key not in done, "a request is done once"
        done[completion.key] = completion
        if len(done) == len(requests):
            all_done.set()

    engine = Engine(
        scheduler,
        ByteTokenizer(),
        carrier=tiers,
        on_done=on_done,
        metrics=ServiceMetrics(CollectorRegistry()),
    )
    tiers.engine = engine
    engine.worker_joined(WorkerEntry("w", 200 * GEOMETRY.page_bytes, epoch=1, instance="one"))
    for key, request in enumerate(requests):
        engine.submit(key, request, None if listen is None else partial(listen, key))
    if act is not None:
        act(engine)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    if act is None:
        assert all_done.wait(WAIT_S)
    engine.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    return done, engine, scheduler


def completion_of(prompt: bytes, **fields: Any) -> ParsedRequest:
    fields.setdefault("choices", (make_choice(max_new_tokens=50),))
    return make_request(Endpoint.COMPLETIONS, [Prompt(tuple(prompt))], **fields)


def test_text_ends_at_an_end_token_and_nothing_is_kept() -> None:
    tiers = Tiers([*b"hello", END], 3)
    done, _, scheduler = run_engine([completion_of(b"abc")] * 1, tiers)
    (choice,) = done[0].choices
    assert choice.text == "hello"
    assert len(choice.tokens) == 6
    assert tiers.sampled == 6
    scheduler.check_integrity()
    assert not scheduler.has_work()


def test_a_stop_string_costs_one_token_at_most() -> None:
    tiers = Tiers(b"one two three four", 3)
    done, _, scheduler = run_engine([completion_of(b"abc", stop=("two",))], tiers)
    (choice,) = done[0].choices
    assert choice.text == "one "
    assert len(choice.tokens) == len(b"one two")
    assert tiers.sampled <= len(b"one two") + 1
    scheduler.check_integrity()


def test_many_requests_of_several_choices_end_once_each() -> None:
    choices = tuple(make_choice(index=index, choice=index, max_new_tokens=9) for index in range(3))
    requests = [completion_of(b"xyz", n=3, choices=choices) for _ in range(40)]
    done, engine, scheduler = run_engine(requests, Tiers(b"abcdefghijkl", 3))
    assert all(
        [choice.text for choice in item.choices] == ["abcdefghi"] * 3 for item in done.values()
    )
    scheduler.check_integrity()
    assert scheduler.stats().kv_used_bytes == 0
    assert engine.failure is None


def test_a_broken_row_fails_its_request_and_no_other() -> None:
    tiers = Tiers(b"abcdef", 3)
    tiers.fail_at = 4
    short = completion_of(b"xyz", choices=(make_choice(max_new_tokens=3),))
    done, engine, _ = run_engine([short, completion_of(b"xyz")], tiers)
    assert done[0].error is None
    assert isinstance(done[1].error, InvariantBroken)
    assert engine.failure is None


def test_a_request_that_never_fits_is_refused_alone() -> None:
    large = completion_of(b"x" * 150, choices=(make_choice(max_new_tokens=100),))
    small = completion_of(b"xyz", choices=(make_choice(max_new_tokens=2),))
    done, _, _ = run_engine([large, small], Tiers(b"ab", 3))
    assert "250" in str(done[0].error)
    assert "200" in str(done[0].error)
    assert done[1].choices[0].text == "ab"


def test_a_cancelled_request_is_not_reported() -> None:
    def cancel(engine: Engine) -> None:
        engine.cancel(0)

    done, _, scheduler = run_engine([completion_of(b"abc")], Tiers(b"a", 3), cancel)
    assert done == {}
    assert not scheduler.has_work()


@pytest.mark.parametrize("error", [PeerUnavailable("worker w0 went away"), GlinthawkError("x")])
def test_a_lost_peer_ends_the_engine_with_its_reason(error: GlinthawkError) -> None:
    def lose(engine: Engine) -> None:
        engine.break_down(error)

    _, engine, _ = run_engine([completion_of(b"abc")], Tiers(b"a", 3), lose)
    assert engine.failure is error


def test_steps_are_sent_in_an_order_that_a_worker_can_compose() -> None:
    """A sequence is prefilled before it is decoded, and never composed after its release."""
    seen: set[int] = set()
    released: set[int] = set()

    class Watched(Tiers):
        def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
            released.update(plan.releases)
            for sequence in plan.sequences.tolist():
                assert sequence not in released
                assert plan.kind is StepKind.PREFILL or sequence in seen
                seen.add(sequence)
            super().send_step(plan, epoch=epoch, prefill_first=prefill_first)

    choice = (make_choice(max_new_tokens=5),)
    run_engine([completion_of(b"abc", choices=choice) for _ in range(30)], Watched(b"abcdef", 3))
    assert len(seen) == 30


def test_a_listener_hears_the_whole_text_of_each_choice_and_its_end_once() -> None:
    choices = tuple(make_choice(index=index, choice=index, max_new_tokens=40) for index in range(2))
    requests = [
        completion_of(b"abc", n=2, choices=choices, stop=("two",)),
        completion_of(b"abc", choices=(make_choice(max_new_tokens=6),)),
    ]
    heard: dict[tuple[int, int], list[TextDelta]] = {}
    done, _, _ = run_engine(
        requests,
        Tiers(b"one two three", 3),
        listen=lambda key, delta: heard.setdefault((key, delta.index), []).append(delta),
    )
    results = {(key, choice.index): choice for key, item in done.items() for choice in item.choices}
    assert set(heard) == set(results) == {(0, 0), (0, 1), (1, 0)}
    for place, deltas in heard.items():
        assert "".join(delta.text for delta in deltas) == results[place].text
        assert sum((delta.tokens for delta in deltas), ()) == results[place].tokens
        ends = [delta.finish_reason for delta in deltas]
        assert ends[:-1] == [None] * (len(deltas) - 1)
        assert ends[-1] is results[place].finish_reason


def test_a_defect_ends_the_engine_and_says_so() -> None:
    def confuse(engine: Engine) -> None:
        engine.submit(1, None)  # type: ignore[arg-type]

    _, engine, _ = run_engine([completion_of(b"abc")], Tiers(b"a", 3), confuse)
    assert isinstance(engine.failure, InvariantBroken)
    assert "AttributeError" in str(engine.failure)
