"""Long work that fails or hangs: it is said where people look, and the batch goes on."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from glinthawk.gateway.generation import Generation
from glinthawk.gateway.jobs.chores import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    PLACES,
    Attempt,
    Chores,
    Done,
    Failed,
    Kind,
    Settled,
)
from glinthawk.gateway.jobs.metrics import JobMetrics
from glinthawk.gateway.jobs.patience import Patience
from glinthawk.gateway.jobs.preparing import Preparing
from glinthawk.gateway.jobs.services import JobServices
from glinthawk.gateway.store.records import BatchError, BatchStatus, RequestCounts
from glinthawk.gateway.store.sql import SqlStore, open_store
from unit.gateway.jobs.factories import (
    MAX_LINE_BYTES,
    Gateway,
    add_batch,
    add_validated_batch,
    await_status,
    await_true,
    build_line,
    find_validating,
    make_settings,
    read_answers,
)

WAIT_S = 60.0


class Rig:
    """Chores whose clock a test moves, and whose events it hands back."""

    def __init__(self, store: SqlStore) -> None:
        self.now_s = 0.0
        self.registry = CollectorRegistry()
        self.stopped = threading.Event()
        self.store = store
        self._events: list[Done | Failed] = []
        self._is_news = threading.Condition()
        services = JobServices(
            store,
            cast(Generation, None),
            JobMetrics(self.registry),
            clock=lambda: self.now_s,
        )
        self.chores = Chores(
            services,
            make_settings(stuck_after_s=100.0),
            stopped=self.stopped,
            on_event=self._take,
        )

    def _take(self, event: Done | Failed) -> None:
        with self._is_news:
            self._events.append(event)
            self._is_news.notify_all()

    def wait_for_event(self) -> Done | Failed:
        """Hand the next event back, as the runner does."""
        with self._is_news:
            assert self._is_news.wait_for(lambda: self._events, WAIT_S)
            event = self._events.pop(0)
        if isinstance(event, Done):
            self.chores.done(event)
        else:
            self.chores.failed(event)
        return event

    def pass_time(self, seconds: float, *, step_s: float = 1.0) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + step_s)
            self.chores.look()

    def count_failures(self) -> float | None:
        return self.registry.get_sample_value("glinthawk_job_failures_total")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    store = open_store(tmp_path)
    rig = Rig(store)
    yield rig
    rig.stopped.set()
    rig.chores.stop(WAIT_S)
    store.close()


def fail() -> None:
    raise ZeroDivisionError("/a/path and what a caller wrote")


def test_what_fails_is_told_and_tried_again_later_and_later(rig: Rig) -> None:
    batch = add_batch(rig.store, [build_line("a")])
    pauses = []
    with capture_logs() as logs:
        rig.chores.add(Kind.PREPARING, batch.id, lambda _: Attempt(fail))
        for number in range(1, 10):
            assert isinstance(rig.wait_for_event(), Failed)
            assert rig.count_failures() == number
            (item,) = rig.chores.progress()
            assert (item.batch_id, item.status) == (batch.id, BatchStatus.VALIDATING)
            assert item.problem is not None
            assert "failed" in item.problem
            (error,) = rig.store.get_batch(batch.id).errors
            assert error.code == "internal_error"
            assert batch.id in error.message
            assert "/a/path" not in error.message + item.problem
            pauses.append(logs[-1]["again_in_s"])
            rig.pass_time(pauses[-1] + 0.1)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE_S, LONGEST_PAUSE_S)
    assert {line["event"] for line in logs} == {"batch_stuck"}
    assert logs[0]["error"] == "ZeroDivisionError"


def test_more_than_have_a_place_wait_and_one_that_waits_for_its_time_holds_none(rig: Rig) -> None:
    go = threading.Event()
    began: list[str] = []

    def begin(key: str) -> Callable[[Patience], Attempt]:
        def run() -> None:
            began.append(key)
            assert go.wait(WAIT_S)

        return lambda _: Attempt(run)

    rig.chores.add(Kind.FINISHING, "failing", lambda _: Attempt(fail))
    assert isinstance(rig.wait_for_event(), Failed)
    keys = [f"batch_{number}" for number in range(PLACES[Kind.FINISHING] + 1)]
    for key in keys:
        rig.chores.add(Kind.FINISHING, key, begin(key))
    await_true(lambda: sorted(began) == keys[:-1])
    rig.chores.add(Kind.PREPARING, "other", begin("other"))
    await_true(lambda: "other" in began)
    assert keys[-1] not in began
    go.set()
    for _ in (*keys, "other"):
        assert isinstance(rig.wait_for_event(), Done)
    assert keys[-1] in began
    assert [item.batch_id for item in rig.chores.progress()] == ["failing"]


def test_what_hangs_is_told_and_interrupted_once_and_goes_on(rig: Rig) -> None:
    go, move, interrupts = threading.Event(), threading.Event(), []

    def begin(patience: Patience) -> Attempt:
        def run() -> None:
            assert move.wait(WAIT_S)
            patience.check()
            assert go.wait(WAIT_S)

        return Attempt(run, lambda: interrupts.append(rig.now_s))

    rig.chores.add(Kind.FINISHING, "batch_1", begin)
    rig.pass_time(99.0)
    assert rig.chores.progress()[0].problem is None
    rig.pass_time(150.0)
    (item,) = rig.chores.progress()
    assert item.problem == "finishing it has not moved for 101 s"
    assert len(interrupts) == 1
    assert rig.count_failures() == 1.0
    move.set()

    def is_well() -> bool:
        rig.chores.look()
        return rig.chores.progress()[0].problem is None

    await_true(is_well)
    go.set()
    assert rig.wait_for_event() == Done("batch_1", None)


def test_time_in_which_the_gateway_stood_still_does_not_count(rig: Rig) -> None:
    go = threading.Event()

    def wait() -> None:
        assert go.wait(WAIT_S)

    rig.chores.add(Kind.FINISHING, "batch_1", lambda _: Attempt(wait))
    for _ in range(10):
        rig.pass_time(86_400.0, step_s=86_400.0)
    assert rig.chores.progress()[0].problem is None
    go.set()
    rig.wait_for_event()


def test_the_end_interrupts_what_runs_and_waits_for_it(rig: Rig) -> None:
    go = threading.Event()

    def begin(patience: Patience) -> Attempt:
        def run() -> None:
            assert go.wait(WAIT_S)
            patience.check()
            raise AssertionError("the gateway ends")

        return Attempt(run, go.set)

    rig.chores.add(Kind.PREPARING, "batch_1", begin)
    rig.stopped.set()
    rig.chores.stop(WAIT_S)
    assert not any(one.name == "preparing" for one in threading.enumerate())


def test_a_validating_process_that_hangs_is_ended_and_started_again(rig: Rig) -> None:
    batch = add_batch(rig.store, [build_line(f"id-{n}") for n in range(20_000)])

    def begin(patience: Patience) -> Attempt:
        preparing = Preparing(
            rig.store,
            batch.id,
            max_line_bytes=MAX_LINE_BYTES,
            patience=patience,
            now=lambda: 5.0,
        )
        return Attempt(lambda: Settled(*preparing.run()), preparing.interrupt)

    rig.chores.add(Kind.PREPARING, batch.id, begin)
    await_true(lambda: bool(find_validating()))
    (hung,) = find_validating()
    os.kill(hung, signal.SIGSTOP)
    while hung in find_validating():
        rig.pass_time(10.0)
        time.sleep(0.01)
    event = rig.wait_for_event()
    assert isinstance(event, Done)
    assert event.settled is not None
    assert event.settled.batch.status is BatchStatus.IN_PROGRESS
    assert event.settled.batch.counts.total == 20_000


# --- in a gateway


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (BatchStatus.IN_PROGRESS, BatchStatus.COMPLETED),
        (BatchStatus.CANCELLING, BatchStatus.CANCELLED),
    ],
)
def test_a_batch_that_goes_on_after_a_failure_does_not_keep_its_error(
    tmp_path: Path, status: BatchStatus, end: BatchStatus
) -> None:
    store = open_store(tmp_path)
    error = BatchError("internal_error", "preparing it failed; it is tried again")
    batch = add_validated_batch(store, 3, status=status, errors=(error,))
    with Gateway(tmp_path, store=store, is_attached=False) as gateway:
        await_true(lambda: gateway.store.get_batch(batch.id).errors == ())
        ended = await_status(gateway.store, batch.id)
        assert ended.status is end
        assert ended.errors == ()


def test_a_batch_whose_end_fails_says_so_and_ends_when_it_can(tmp_path: Path) -> None:
    """The table of files is away while the batch is finished: a defect, and no outage."""
    with capture_logs() as logs, Gateway(tmp_path, step_s=0.002) as gateway:
        gateway.tiers.go.clear()
        batch = gateway.submit([build_line(f"id-{n}") for n in range(50)])
        await_status(gateway.store, batch.id, {BatchStatus.IN_PROGRESS})
        other = sqlite3.connect(tmp_path / "glinthawk.db", isolation_level=None, timeout=WAIT_S)
        other.execute("ALTER TABLE files RENAME TO away")
        gateway.tiers.go.set()
        await_true(lambda: gateway.store.get_batch(batch.id).errors != ())
        stuck = gateway.store.get_batch(batch.id)
        assert stuck.status is BatchStatus.FINALIZING
        assert stuck.errors[0].code == "internal_error"
        await_true(lambda: gateway.registry.get_sample_value("glinthawk_jobs_stuck") == 1.0)
        (item,) = gateway.runner.progress()
        assert item.status is BatchStatus.FINALIZING
        assert item.problem is not None
        other.execute("ALTER TABLE away RENAME TO files")
        other.close()
        batch = await_status(gateway.store, batch.id)
        assert batch.status is BatchStatus.COMPLETED
        assert batch.errors == ()
        assert batch.counts == RequestCounts(50, 50, 0)
        assert len(read_answers(gateway.store, batch)) == 50
        await_true(lambda: gateway.registry.get_sample_value("glinthawk_jobs_stuck") == 0.0)
    assert any(line["event"] == "batch_stuck" for line in logs)
