"""Machines come and go under forty requests: each completes once, with the text it always has."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from factories_models import make_tiny_model
from glinthawk.core.step import StepPlan
from glinthawk.gateway import evacuation
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.requests import ParsedRequest
from glinthawk.gateway.workers import WorkerState
from survival_runs import (
    SHORT_LEASE_S,
    WAIT_S,
    Deployment,
    assert_same_texts,
    make_requests,
    wait_for,
)

NUM_REQUESTS = 40
NUM_TOKENS = 240
REQUESTS = make_requests(NUM_REQUESTS, NUM_TOKENS)
SOME_TOKENS = 500
"""Of 12,000: everything is under way, and nothing near its end."""

LITTLE_MEMORY = "2MiB"
"""32 pages, room for a part of the requests."""

NUM_LONG = 12
NEVER_SAMPLED = 1 << 20
"""A token id beyond the vocabulary."""

Deploy = Callable[..., Deployment]


def let_stop(request: ParsedRequest) -> ParsedRequest:
    """Return a request that may end at any token, for all that the scheduler knows."""
    stops = frozenset({NEVER_SAMPLED})
    choices = (
        replace(choice, sampling=replace(choice.sampling, stop_token_ids=stops))
        for choice in request.choices
    )
    return replace(request, choices=tuple(choices))


def begin_of(done: Completion, num_tokens: int) -> Completion:
    """Return a request's end as if it had ended after so many tokens."""
    choices = (replace(choice, tokens=choice.tokens[:num_tokens]) for choice in done.choices)
    return replace(done, choices=tuple(choices))


def count_rows(done: Completion) -> int:
    """Return the rows of a request of which nothing is computed twice: its prompt once, and each
    generated token but the first choice's last."""
    return done.request.num_prompt_tokens + sum(len(one.tokens) for one in done.choices) - 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "llama3")


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Completion]:
    deployment = Deployment(model, tmp_path_factory.mktemp("undisturbed"))
    try:
        deployment.start_stage()
        deployment.start_worker("w0")
        deployment.start_engine()
        deployment.submit(REQUESTS)
        deployment.wait_for_all(NUM_REQUESTS)
        return deployment.done
    finally:
        deployment.close()


@pytest.fixture
def deploy(model: Path, tmp_path: Path) -> Iterator[Deploy]:
    """Start tiers and give them the requests; return when many tokens are there."""
    made: list[Deployment] = []

    def begin(
        *workers: str, num_stages: int = 1, kv_memory: str = "8MiB", **settings: float
    ) -> Deployment:
        deployment = Deployment(model, tmp_path, num_stages=num_stages, **settings)
        made.append(deployment)
        for index in range(num_stages):
            deployment.start_stage(index)
        for name in workers:
            deployment.start_worker(name, kv_memory)
        deployment.start_engine()
        for name in workers:
            deployment.wait_for_state(name, WorkerState.ACTIVE)
        deployment.submit(REQUESTS)
        deployment.wait_for_tokens(SOME_TOKENS)
        return deployment

    yield begin
    for deployment in made:
        deployment.close()


def finish(deployment: Deployment, undisturbed: dict[int, Completion]) -> None:
    deployment.wait_for_all(NUM_REQUESTS)
    assert_same_texts(deployment.done, undisturbed)


def test_a_killed_worker_costs_nothing_but_time(
    deploy: Deploy, undisturbed: dict[int, Completion]
) -> None:
    deployment = deploy("w0", "w1")
    wait_for(lambda: deployment.figures("w1").num_sequences > 0, "sequences on the worker")
    deployment.workers["w1"].kill()
    deployment.wait_for_state("w1", WorkerState.LOST)
    finish(deployment, undisturbed)
    assert deployment.engine.stats.scheduler.recomputed_tokens > 0


def test_what_is_computed_again_for_want_of_room_is_counted(
    model: Path,
    tmp_path: Path,
    undisturbed: dict[int, Completion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = CollectorRegistry()
    deployment = Deployment(model, tmp_path, registry=registry)
    rows: list[int] = []
    send_step = deployment.tiers.cluster.send_step

    def send_counted(plan: StepPlan, **more: Any) -> None:
        rows.append(plan.num_rows)
        send_step(plan, **more)

    monkeypatch.setattr(deployment.tiers.cluster, "send_step", send_counted)
    try:
        deployment.start_stage()
        deployment.start_worker("w0", LITTLE_MEMORY)
        deployment.start_engine()
        # Short outputs have the scheduler expect too little of the long ones.
        short = [let_stop(request) for request in make_requests(NUM_REQUESTS, 1)]
        deployment.submit(short, first_key=NUM_REQUESTS)
        deployment.wait_for_all(NUM_REQUESTS)
        deployment.submit([let_stop(request) for request in make_requests(NUM_LONG, 300)])
        deployment.wait_for_all(NUM_REQUESTS + NUM_LONG)
    finally:
        deployment.close()
    begun = {key: begin_of(deployment.done[key], NUM_TOKENS) for key in range(NUM_LONG)}
    assert_same_texts(begun, {key: undisturbed[key] for key in begun})
    recomputed = registry.get_sample_value("glinthawk_recomputed_tokens_total")
    assert recomputed == sum(rows) - sum(count_rows(item) for item in deployment.done.values()) > 0


def test_the_only_worker_may_die_and_another_take_its_place(
    deploy: Deploy, undisturbed: dict[int, Completion]
) -> None:
    deployment = deploy("w0")
    deployment.workers["w0"].kill()
    deployment.wait_for_state("w0", WorkerState.LOST)
    deployment.start_worker("w2")
    finish(deployment, undisturbed)


def test_a_frozen_worker_is_given_up_and_begins_empty_when_it_thaws(
    deploy: Deploy, undisturbed: dict[int, Completion]
) -> None:
    deployment = deploy("w0", "w1", lease_s=SHORT_LEASE_S)
    deployment.workers["w1"].freeze()
    deployment.wait_for_state("w1", WorkerState.LOST)
    deployment.wait_for_tokens(2 * SOME_TOKENS)
    deployment.workers["w1"].thaw()
    finish(deployment, undisturbed)
    deployment.wait_for_state("w1", WorkerState.ACTIVE)
    deployment.wait_for_empty("w1")


def test_a_worker_that_joins_takes_sequences_and_stops_nothing(
    deploy: Deploy, undisturbed: dict[int, Completion]
) -> None:
    deployment = deploy("w0")
    deployment.start_worker("w1")
    deployment.wait_for_state("w1", WorkerState.ACTIVE)
    deployment.submit(REQUESTS, first_key=NUM_REQUESTS)
    deployment.wait_for_all(2 * NUM_REQUESTS)
    assert deployment.measure_busy_s("w1") > 0
    twice = {**undisturbed, **{key + NUM_REQUESTS: item for key, item in undisturbed.items()}}
    assert_same_texts(deployment.done, twice)
    assert deployment.engine.stats.scheduler.recomputed_tokens == 0
    for name in ("w0", "w1"):
        deployment.wait_for_empty(name)


def test_a_worker_asked_to_end_finishes_what_it_holds_and_ends(
    deploy: Deploy, undisturbed: dict[int, Completion]
) -> None:
    deployment = deploy("w0", "w1")
    leaving = deployment.workers["w1"].popen
    leaving.terminate()
    deployment.wait_for_state("w1", WorkerState.DRAINING)
    finish(deployment, undisturbed)
    assert leaving.wait(WAIT_S) == 0
    assert deployment.engine.stats.scheduler.recomputed_tokens == 0


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_stage_is_waited_for_and_no_request_is_lost(
    deploy: Deploy, undisturbed: dict[int, Completion], victim: int
) -> None:
    deployment = deploy("w0", "w1", num_stages=2)
    deployment.stages[victim].kill()
    wait_for(lambda: not deployment.tiers.is_ready, "the loss of the stage")
    deployment.start_stage(victim, "another-name")
    finish(deployment, undisturbed)
    for name in ("w0", "w1"):
        deployment.wait_for_empty(name)


def test_the_only_stage_may_be_frozen(deploy: Deploy, undisturbed: dict[int, Completion]) -> None:
    deployment = deploy("w0", lease_s=SHORT_LEASE_S)
    deployment.stages[0].freeze()
    wait_for(lambda: not deployment.tiers.is_ready, "the loss of the stage")
    deployment.stages[0].thaw()
    finish(deployment, undisturbed)
    deployment.wait_for_empty("w0")


def test_a_drained_worker_hands_its_sequences_over_and_nothing_is_computed_again(
    deploy: Deploy, undisturbed: dict[int, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evacuation, "SHARE_OF_TIME", 0.0)  # nothing may stay and end there
    deployment = deploy("w0", "w1", kv_memory="64MiB")  # each has room for all
    wait_for(lambda: deployment.figures("w1").num_sequences > 0, "sequences on w1")
    deployment.engine.drain("w1", WAIT_S)
    deployment.wait_for_state("w1", WorkerState.DRAINED)
    deployment.wait_for_empty("w1")
    finish(deployment, undisturbed)
    stats = deployment.engine.stats.scheduler
    assert stats.moved_tokens > 0
    assert stats.recomputed_tokens == 0
    deployment.wait_for_empty("w0")


def test_a_worker_killed_while_it_hands_over_costs_nothing_but_time(
    deploy: Deploy, undisturbed: dict[int, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evacuation, "SHARE_OF_TIME", 0.0)
    deployment = deploy("w0", "w1", kv_memory="64MiB")  # each has room for all
    wait_for(lambda: deployment.figures("w1").num_sequences > 0, "sequences on w1")
    deployment.engine.drain("w1", WAIT_S)
    wait_for(lambda: deployment.engine.stats.scheduler.moved_tokens > 0, "the first copy")
    deployment.workers["w1"].kill()
    finish(deployment, undisturbed)
    deployment.wait_for_empty("w0")


def test_a_drained_worker_is_empty_by_its_deadline_and_can_come_back(
    deploy: Deploy, undisturbed: dict[int, Completion]
) -> None:
    deployment = deploy("w0", "w1")
    deployment.engine.drain("w1", 0.0)
    deployment.wait_for_state("w1", WorkerState.DRAINED)
    assert deployment.figures("w1").num_sequences == 0
    deployment.wait_for_empty("w1")
    deployment.wait_for_state("w1", WorkerState.DRAINED)
    finish(deployment, undisturbed)
    stats = deployment.engine.stats.scheduler
    assert stats.recomputed_tokens + stats.moved_tokens > 0, "it was cut short"
    deployment.engine.cancel_drain("w1")
    deployment.wait_for_state("w1", WorkerState.ACTIVE)
    deployment.wait_for_empty("w1")
    busy_s = deployment.measure_busy_s("w1")
    deployment.submit(REQUESTS, first_key=NUM_REQUESTS)
    deployment.wait_for_all(2 * NUM_REQUESTS)
    assert deployment.measure_busy_s("w1") > busy_s
    again = {key - NUM_REQUESTS: v for key, v in deployment.done.items() if key >= NUM_REQUESTS}
    assert_same_texts(again, undisturbed)
