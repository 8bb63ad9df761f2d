"""What is begun and what is kept, step by step, over the real store and an engine at rest."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from glinthawk.errors import CapacityExceeded, GlinthawkError, InvariantBroken, PeerUnavailable
from glinthawk.gateway.detokenize import ChoiceResult
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.generation import Generation
from glinthawk.gateway.jobs.feeder import BEGIN_AGAIN_S, COMMIT_EVERY_S, Feeder
from glinthawk.gateway.jobs.job import Job
from glinthawk.gateway.jobs.metrics import JobMetrics
from glinthawk.gateway.jobs.patience import Patience
from glinthawk.gateway.jobs.services import JobServices
from glinthawk.gateway.jobs.validation import Validation
from glinthawk.gateway.requests import ParsedRequest
from glinthawk.gateway.store.records import BatchStatus
from glinthawk.gateway.store.sql import SqlStore, open_store
from glinthawk.scheduler import FinishReason, Flow
from unit.gateway.factories import make_model
from unit.gateway.jobs.factories import MAX_LINE_BYTES, add_batch, build_line, make_settings


class EngineAtRest:
    """Notes what it is given; answers come from the test."""

    failure = None

    def __init__(self) -> None:
        self.requests: dict[object, tuple[ParsedRequest, Flow]] = {}
        self.num_begun = 0

    def submit(self, key: object, request: ParsedRequest, listener: None, flow: Flow) -> None:
        self.requests[key] = (request, flow)
        self.num_begun += 1

    def cancel(self, key: object) -> None:
        del self.requests[key]


class Bench:
    def __init__(self, folder: Path, *, read_ahead: int = 100) -> None:
        self.now_s = 1000.0
        self.store: SqlStore = open_store(folder)
        self.engine = EngineAtRest()
        self.generation = Generation(make_model(200), run_seed=1)
        self.generation.attach(self.engine)  # type: ignore[arg-type]
        self.completions: list[Completion] = []
        self.patience = Patience("feeding", threading.Event())
        self.feeder = Feeder(
            JobServices(
                self.store,
                self.generation,
                JobMetrics(CollectorRegistry()),
                clock=lambda: self.now_s,
            ),
            make_settings(read_ahead=read_ahead),
            patience=self.patience,
            on_done=self.completions.append,
        )

    def add_job(self, num_lines: int, *, n: int = 1, priority: int = 0) -> Job:
        body = {"prompt": "p", "max_tokens": 4, "n": n}
        lines = [build_line(f"id-{number}", body=body) for number in range(num_lines)]
        batch = add_batch(self.store, lines, priority=priority)
        Validation(self.store, batch, max_line_bytes=MAX_LINE_BYTES, patience=self.patience).run()
        batch = self.store.update_batch(
            batch.id,
            only_from=(BatchStatus.VALIDATING,),
            status=BatchStatus.IN_PROGRESS,
            total=num_lines,
        )
        job = Job(batch, self.store.file_path(batch.input_file_id), self.now_s)
        self.feeder.add(job)
        return job

    def end(self, key: object, error: GlinthawkError | None = None) -> None:
        """End a request in the engine, as its thread does."""
        request, _ = self.engine.requests.pop(key)
        choices = tuple(
            ChoiceResult(choice.index, 0, "ab", (97, 98), (0, 1), FinishReason.STOP)
            for choice in request.choices
        )
        self.generation.finish(Completion(key, request, () if error else choices, error))
        while self.completions:
            self.feeder.take(self.completions.pop())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with_bench = Bench(tmp_path)
    yield with_bench
    with_bench.store.close()


@pytest.mark.parametrize("error", [PeerUnavailable("away"), CapacityExceeded("full")])
def test_an_error_that_passes_is_no_answer(bench: Bench, error: GlinthawkError) -> None:
    job = bench.add_job(2)
    bench.feeder.feed()
    key = (job.batch.id, 1)
    bench.end(key, error)
    assert not bench.feeder.feed()
    assert key not in bench.engine.requests
    bench.now_s += BEGIN_AGAIN_S
    bench.feeder.feed()
    bench.end(key)
    bench.end((job.batch.id, 2))
    bench.feeder.commit(at_once=True)
    assert (job.num_done, job.num_failed) == (2, 0)
    assert bench.feeder.is_done(job)
    assert bench.engine.num_begun == 3


def test_a_line_costs_no_look_at_the_jobs_that_do_not_go_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []
    has_line = bench.feeder._has_line

    def look(job: Job) -> bool:
        looked_at.append(job)
        return has_line(job)

    monkeypatch.setattr(bench.feeder, "_has_line", look)
    jobs = [bench.add_job(2) for _ in range(40)]
    while bench.feeder.feed():
        pass
    assert bench.engine.num_begun == 2 * len(jobs)
    assert len(looked_at) <= 3 * len(jobs), "each line once, and each job once to find it has none"


def test_an_error_that_stays_is_the_answer(bench: Bench) -> None:
    job = bench.add_job(1)
    bench.feeder.feed()
    bench.end((job.batch.id, 1), InvariantBroken("not finite"))
    bench.feeder.commit(at_once=True)
    assert (job.num_done, job.num_failed) == (1, 1)
    assert bench.store.get_batch(job.batch.id).counts.failed == 1


def test_answers_are_committed_together_after_a_while(bench: Bench) -> None:
    job = bench.add_job(9)
    bench.feeder.feed()
    for number in (1, 2):
        bench.end((job.batch.id, number))
    bench.feeder.commit()
    assert bench.store.get_batch(job.batch.id).counts.completed == 0
    bench.now_s += COMMIT_EVERY_S
    bench.feeder.commit()
    assert bench.store.get_batch(job.batch.id).counts.completed == 2
    for number in range(3, 10):
        bench.end((job.batch.id, number))
    bench.feeder.commit()
    assert bench.store.get_batch(job.batch.id).counts.completed == 9, "nothing else was open"


def test_room_is_given_back_when_answers_are_durable_and_counts_sequences(tmp_path: Path) -> None:
    bench = Bench(tmp_path, read_ahead=6)
    job = bench.add_job(10, n=3)
    bench.feeder.feed()
    assert bench.engine.num_begun == 2
    bench.end((job.batch.id, 1))
    bench.feeder.feed()
    assert bench.engine.num_begun == 2
    bench.feeder.commit(at_once=True)
    bench.feeder.feed()
    assert bench.engine.num_begun == 3
    bench.store.close()


def test_closing_a_job_gives_up_what_is_open_and_nothing_of_others(bench: Bench) -> None:
    first, second = bench.add_job(5), bench.add_job(5)
    bench.feeder.feed()
    late = (first.batch.id, 1)
    request, _ = bench.engine.requests[late]
    bench.feeder.close(first)
    assert {batch_id for batch_id, _ in bench.engine.requests} == {second.batch.id}  # type: ignore[misc]
    bench.feeder.take(Completion(late, request, (), None))
    bench.feeder.commit(at_once=True)
    assert bench.store.get_batch(first.batch.id).counts.completed == 0
    bench.feeder.remove(first)
    assert not bench.feeder.feed()


def test_all_jobs_together_weigh_as_one_flow(bench: Bench) -> None:
    bench.add_job(5)
    bench.add_job(5, priority=1)
    bench.feeder.feed()
    weights = {flow.name: flow.weight for _, flow in bench.engine.requests.values()}
    assert sorted(weights.values()) == pytest.approx([1 / 3, 2 / 3])
