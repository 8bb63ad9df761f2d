"""The end of a batch over the real store, given up after each of its steps."""

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from glinthawk.gateway.jobs.finishing import CLOSE_LINES, Finishing, drop_leftovers
from glinthawk.gateway.jobs.patience import Patience, Stopped
from glinthawk.gateway.store.records import BatchRecord, BatchStatus, FilePurpose
from glinthawk.gateway.store.sql import SqlStore, open_store
from unit.gateway.jobs.factories import add_validated_batch, make_results, read_lines

NUM_LINES = 2 * CLOSE_LINES + 500
MAX_STEPS = 9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with_store = open_store(tmp_path / "data")
    yield with_store
    with_store.close()


def make_patience() -> Patience:
    return Patience("finishing", threading.Event())


def make_finishing(store: SqlStore, batch: BatchRecord) -> Finishing:
    return Finishing(store, batch.id, patience=make_patience(), now=lambda: 99.0)


def begin_end(
    store: SqlStore, outcome: BatchStatus, *, answered: range, failed: range
) -> BatchRecord:
    batch = add_validated_batch(store, NUM_LINES)
    store.add_results({batch.id: make_results(answered)})
    store.add_results({batch.id: make_results(failed, is_error=True)})
    return store.update_batch(
        batch.id,
        only_from=(BatchStatus.IN_PROGRESS,),
        status=BatchStatus.FINALIZING,
        outcome=outcome,
        finalizing_at=batch.created_at,
    )


def list_outputs(store: SqlStore) -> list[str]:
    return [file.id for file in store.list_files(limit=100, purpose=FilePurpose.BATCH_OUTPUT)]


@pytest.mark.parametrize("num_steps", range(MAX_STEPS))
def test_given_up_after_any_step_it_is_finished_once_by_the_next(
    store: SqlStore, num_steps: int
) -> None:
    half = NUM_LINES // 5
    batch = begin_end(
        store,
        BatchStatus.EXPIRED,
        answered=range(1, half + 1),
        failed=range(half + 1, half + 11),
    )
    taken = list(islice(make_finishing(store, batch).steps(), num_steps))
    assert len(taken) == num_steps, "the test goes through all steps"
    batch = make_finishing(store, batch).run()
    assert batch.status is BatchStatus.EXPIRED
    assert batch.outcome is None
    assert batch.expired_at == 99
    assert sorted(list_outputs(store)) == sorted(
        [str(batch.output_file_id), str(batch.error_file_id)]
    )
    output = read_lines(store, batch.output_file_id)
    assert [line["line"] for line in output] == list(range(1, half + 1))
    errors = read_lines(store, batch.error_file_id)
    assert len(errors) == NUM_LINES - half
    assert [line["line"] for line in errors[:10]] == list(range(half + 1, half + 11))
    assert {line["error"]["code"] for line in errors[10:]} == {"batch_expired"}
    assert {line["custom_id"] for line in errors[10:]} == {
        f"id-{n}" for n in range(half + 11, NUM_LINES + 1)
    }
    assert (batch.counts.completed, batch.counts.failed) == (half, NUM_LINES - half)
    assert list(store.iterate_results(batch.id, is_error=True)) == []


def test_the_steps_above_are_all_there_are(store: SqlStore) -> None:
    batch = begin_end(store, BatchStatus.EXPIRED, answered=range(1, 3), failed=range(3, 4))
    assert len(list(make_finishing(store, batch).steps())) == MAX_STEPS


@pytest.mark.parametrize(
    ("answered", "failed"),
    [(range(1, NUM_LINES + 1), range(0)), (range(0), range(1, NUM_LINES + 1))],
)
def test_only_files_with_lines_are_made(store: SqlStore, answered: range, failed: range) -> None:
    batch = begin_end(store, BatchStatus.COMPLETED, answered=answered, failed=failed)
    batch = make_finishing(store, batch).run()
    assert batch.status is BatchStatus.COMPLETED
    assert batch.completed_at == 99
    assert (batch.output_file_id is not None) == bool(answered)
    assert (batch.error_file_id is not None) == bool(failed)
    assert len(list_outputs(store)) == 1


def test_a_gateway_that_ends_leaves_no_half_file(store: SqlStore) -> None:
    batch = begin_end(store, BatchStatus.COMPLETED, answered=range(0), failed=range(0))
    store.add_results({batch.id: make_results(range(1, NUM_LINES + 1), padding=300)})
    stopped = threading.Event()

    class Stopping(Patience):
        """Ends the gateway while the file is being written, after its first piece."""

        num_checks = 0

        def check(self) -> None:
            self.num_checks += 1
            if self.num_checks == 4:
                stopped.set()
            super().check()

    large = Finishing(store, batch.id, patience=Stopping("x", stopped), now=lambda: 99.0)
    with pytest.raises(Stopped):
        large.run()
    assert list_outputs(store) == []
    assert make_finishing(store, batch).run().status is BatchStatus.COMPLETED


def test_lines_of_a_batch_that_ended_in_a_crash_are_dropped_later(store: SqlStore) -> None:
    batch = begin_end(store, BatchStatus.CANCELLED, answered=range(1, 3), failed=range(0))
    steps = make_finishing(store, batch).steps()
    for step in steps:
        if step == "batch ended":
            break
    running = add_validated_batch(store, 3)
    drop_leftovers(store, make_patience())
    assert store.next_lines(batch.id, after=0, limit=5) == []
    assert list(store.iterate_results(batch.id, is_error=False)) == []
    assert len(store.next_lines(running.id, after=0, limit=5)) == 3
    assert len(read_lines(store, store.get_batch(batch.id).output_file_id)) == 2
