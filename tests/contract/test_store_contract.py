"""What every store does, whatever it keeps things in."""

import dataclasses
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glinthawk.errors import (
    CapacityExceeded,
    GlinthawkError,
    InvalidRequest,
    InvariantBroken,
    NotFound,
)
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import (
    BatchError,
    BatchRecord,
    BatchStatus,
    DrainRecord,
    FilePurpose,
    KeyRecord,
    RequestCounts,
    WorkerSize,
)
from glinthawk.gateway.store.sql import open_store
from store_model import ModelStore
from unit.gateway.store.factories import (
    START,
    FakeClock,
    add_batch,
    add_file,
    make_line,
    make_lines,
    make_result,
)

ACTIVE = [BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["sql", "model"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    if request.param == "sql":
        opened: Store = open_store(tmp_path / "data", clock=clock)
    else:
        opened = ModelStore(tmp_path, clock)
    yield opened
    opened.close()


def read(store: Store, file_id: str) -> bytes:
    with store.open_file(file_id) as content:
        return content.read()


# --- files


def test_a_file_comes_back_as_it_arrived_in_pieces(store: Store) -> None:
    pieces = [b"first ", b"", b"second\n", bytes(range(256)) * 1000]
    record = store.add_file(
        iter(pieces), purpose=FilePurpose.BATCH, filename="söme file.jsonl", owner="ci"
    )
    assert record.num_bytes == sum(map(len, pieces))
    assert (record.filename, record.owner, record.created_at) == ("söme file.jsonl", "ci", START)
    assert record.id.startswith("file-")
    assert store.get_file(record.id) == record
    assert read(store, record.id) == b"".join(pieces)
    assert store.file_path(record.id).read_bytes() == b"".join(pieces)


def test_an_empty_file_is_a_file(store: Store) -> None:
    record = store.add_file([], purpose=FilePurpose.BATCH_OUTPUT, filename="x")
    assert (record.num_bytes, read(store, record.id)) == (0, b"")


def test_an_upload_that_breaks_off_leaves_nothing_and_says_why(store: Store) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError("the client hung up")

    with pytest.raises(OSError, match="hung up"):
        store.add_file(broken(), purpose=FilePurpose.BATCH, filename="x")
    assert store.list_files(limit=10) == []


def test_a_deleted_file_is_gone_but_stays_readable_where_it_is_open(store: Store) -> None:
    record = add_file(store, b"content")
    with store.open_file(record.id) as content:
        store.delete_file(record.id)
        assert content.read() == b"content"
    for use in (store.get_file, store.open_file, store.file_path, store.delete_file):
        with pytest.raises(NotFound, match=record.id):
            use(record.id)
    assert store.list_files(limit=10) == []


@pytest.mark.parametrize("status", list(BatchStatus))
def test_a_file_can_be_deleted_once_no_batch_needs_it(store: Store, status: BatchStatus) -> None:
    record = add_file(store)
    add_batch(store, record.id, status=status)
    if status.is_final:
        store.delete_file(record.id)
        assert store.list_files(limit=10) == []
    else:
        with pytest.raises(InvalidRequest):
            store.delete_file(record.id)
        assert read(store, record.id) == b"{}\n"


# --- lists


def page_through(
    fetch: Callable[[str | None], list[str]],
) -> list[str]:
    found: list[str] = []
    while page := fetch(found[-1] if found else None):
        found += page
    return found


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_of_files_have_each_once_though_many_share_a_second(
    store: Store, clock: FakeClock, limit: int, newest_first: bool
) -> None:
    created = []
    for second in (5, 5, 5, 5, 6, 6, 3, 3, 3, 9):  # a clock may be set back
        clock.now = START + second
        created.append(add_file(store))
    expected = [file.id for file in sorted(created, key=lambda file: file.created_at)]
    if newest_first:
        expected.reverse()

    def fetch(after: str | None) -> list[str]:
        rows = store.list_files(limit=limit, after=after, newest_first=newest_first)
        assert len(rows) <= limit
        return [row.id for row in rows]

    assert page_through(fetch) == expected


def test_a_page_of_files_goes_on_behind_one_of_another_purpose(store: Store) -> None:
    inputs = [add_file(store), add_file(store)]
    output = add_file(store, purpose=FilePurpose.BATCH_OUTPUT)
    assert list(store.list_files(limit=5, purpose=FilePurpose.BATCH)) == inputs[::-1]
    rows = store.list_files(limit=5, after=output.id, purpose=FilePurpose.BATCH)
    assert list(rows) == inputs[::-1]


def test_pages_of_batches_have_each_once_and_only_the_statuses_asked_for(store: Store) -> None:
    file_id = add_file(store).id
    cycle = [BatchStatus.IN_PROGRESS, BatchStatus.COMPLETED, BatchStatus.FAILED]
    created = [add_batch(store, file_id, status=cycle[n % 3]) for n in range(12)]
    wanted = [BatchStatus.COMPLETED, BatchStatus.FAILED]
    expected = [batch.id for batch in reversed(created) if batch.status in wanted]
    assert expected == page_through(
        lambda after: [row.id for row in store.list_batches(limit=3, after=after, statuses=wanted)]
    )
    assert list(store.list_batches(limit=1, newest_first=False)) == created[:1]
    assert store.list_batches(limit=5, statuses=[]) == []


def test_a_list_behind_what_is_not_there_is_refused(store: Store) -> None:
    with pytest.raises(NotFound, match="file-0"):
        store.list_files(limit=1, after="file-0")
    with pytest.raises(NotFound, match="batch_0"):
        store.list_batches(limit=1, after="batch_0")


# --- batches


def test_a_batch_comes_back_with_all_its_fields(store: Store) -> None:
    fields = {
        "status": BatchStatus.FINALIZING,
        "priority": -3,
        "owner": "ci",
        "metadata": {"a": "ü", "lone": "\ud800", "nul": "\0"},
        "counts": RequestCounts(5, 2, 1),
        "errors": (BatchError("invalid_json", "no JSON", line=2), BatchError("c", "m", param="p")),
        "outcome": BatchStatus.EXPIRED,
        "output_file_id": "file-1",
        "error_file_id": "file-2",
    } | {
        field.name: START + index
        for index, field in enumerate(dataclasses.fields(BatchRecord))
        if field.name.endswith("_at")
    }
    batch = add_batch(store, **fields)
    assert batch.id.startswith("batch_")
    for name, value in fields.items():
        assert getattr(batch, name) == value, name
    assert store.get_batch(batch.id) == batch


def test_a_batch_needs_its_input_file(store: Store) -> None:
    with pytest.raises(NotFound, match="file-0"):
        add_batch(store, "file-0")
    assert store.list_batches(limit=10) == []


def test_a_change_is_made_only_from_the_statuses_it_names(store: Store) -> None:
    batch = add_batch(store)
    changed = store.update_batch(
        batch.id,
        only_from=ACTIVE,
        status=BatchStatus.CANCELLING,
        cancelling_at=START + 1,
        total=7,
        errors=(BatchError("c", "m"),),
        outcome=BatchStatus.CANCELLED,
    )
    expected = dataclasses.replace(
        batch,
        status=BatchStatus.CANCELLING,
        cancelling_at=START + 1,
        counts=RequestCounts(total=7),
        errors=(BatchError("c", "m"),),
        outcome=BatchStatus.CANCELLED,
    )
    assert changed == expected
    assert store.update_batch(batch.id, only_from=ACTIVE, status=BatchStatus.COMPLETED) == expected
    assert store.update_batch(batch.id, only_from=[], priority=9) == expected
    assert store.get_batch(batch.id) == expected
    cleared = store.update_batch(batch.id, only_from=[BatchStatus.CANCELLING], outcome=None)
    assert cleared.outcome is None


@pytest.mark.parametrize("change", [{"id": "x"}, {"counts": RequestCounts(1)}, {"nonsense": 1}])
def test_what_is_no_changeable_field_is_a_defect(store: Store, change: dict[str, object]) -> None:
    batch = add_batch(store)
    with pytest.raises(InvariantBroken):
        store.update_batch(batch.id, only_from=ACTIVE, **change)
    assert store.get_batch(batch.id) == batch


# --- lines and results


def test_lines_wait_in_order_until_they_are_answered(store: Store) -> None:
    batch = add_batch(store)
    lines = make_lines([1, 2, 4, 7, 8])
    assert store.add_lines(batch.id, lines) == []
    assert list(store.next_lines(batch.id, after=0, limit=10)) == lines
    assert list(store.next_lines(batch.id, after=2, limit=2)) == lines[2:4]
    store.add_results({batch.id: [make_result(4), make_result(1, is_error=True)]})
    assert list(store.next_lines(batch.id, after=0, limit=2)) == [lines[1], lines[3]]
    assert list(store.next_lines(batch.id, after=8, limit=2)) == []


@pytest.mark.parametrize(
    "custom_id", ["", "a", "é" * 16, "é" * 17, "x" * 33, "y" * 5_000, "\ud800", "a\0b", "🦅"]
)
def test_any_custom_id_comes_back_and_is_taken_once(store: Store, custom_id: str) -> None:
    batch, other = add_batch(store), add_batch(store)
    assert store.add_lines(batch.id, [make_line(1, custom_id), make_line(2, custom_id)]) == [2]
    assert store.add_lines(batch.id, [make_line(3, custom_id + "'"), make_line(4, custom_id)]) == [
        4
    ]
    assert store.add_lines(other.id, [make_line(1, custom_id)]) == []
    kept = [line.custom_id for line in store.next_lines(batch.id, after=0, limit=10)]
    assert kept == [custom_id, custom_id + "'"]


def test_lines_may_be_added_again_after_a_restart(store: Store) -> None:
    batch = add_batch(store)
    lines = [*make_lines(range(1, 2_500)), make_line(2_500, "request-7")]
    assert store.add_lines(batch.id, lines[:2_400]) == []
    assert store.add_lines(batch.id, lines) == [2_500]
    assert store.add_lines(batch.id, lines) == [2_500]
    assert len(store.next_lines(batch.id, after=0, limit=5_000)) == 2_499
    changed = dataclasses.replace(lines[0], custom_id="another")
    assert store.add_lines(batch.id, [changed]) == []
    assert list(store.next_lines(batch.id, after=0, limit=1)) == lines[:1]


def test_the_first_result_of_a_line_stays_and_is_counted_once(store: Store) -> None:
    batch = add_batch(store)
    store.add_lines(batch.id, make_lines([1, 2]))
    store.add_results({batch.id: [make_result(1), make_result(1, is_error=True)]})
    store.add_results({batch.id: [make_result(1, content=b"late\n"), make_result(2)]})
    store.add_results({batch.id: [make_result(2, is_error=True), make_result(9, is_error=True)]})
    store.add_results({batch.id: []})
    assert store.get_batch(batch.id).counts == RequestCounts(0, completed=2, failed=1)
    outputs = list(store.iterate_results(batch.id, is_error=False))
    assert outputs == [make_result(1).content, make_result(2).content]
    assert list(store.iterate_results(batch.id, is_error=True)) == [make_result(9).content]


def test_results_of_many_batches_are_committed_together_or_not_at_all(store: Store) -> None:
    first, second = add_batch(store), add_batch(store)
    with pytest.raises(NotFound, match="batch_0"):
        store.add_results({first.id: [make_result(1)], "batch_0": [make_result(1)]})
    assert store.get_batch(first.id).counts == RequestCounts()
    assert list(store.iterate_results(first.id, is_error=False)) == []
    store.add_results({first.id: [make_result(1)], second.id: [make_result(5, is_error=True)]})
    assert store.get_batch(first.id).counts == RequestCounts(0, 1, 0)
    assert store.get_batch(second.id).counts == RequestCounts(0, 0, 1)


def test_results_are_read_in_the_order_of_their_commit(store: Store) -> None:
    batch, other = add_batch(store), add_batch(store)
    order = [1_700, 3, 9, 4, 2_000, 1, *range(3_000, 5_000)]
    for number in order[:10]:
        store.add_results({batch.id: [make_result(number)], other.id: [make_result(number)]})
    store.add_results({batch.id: [make_result(number) for number in order[10:]]})
    contents = list(store.iterate_results(batch.id, is_error=False))
    assert contents == [make_result(number).content for number in order]


def test_a_batch_that_is_final_takes_no_result_and_may_forget_its_lines(store: Store) -> None:
    batch = add_batch(store)
    store.add_lines(batch.id, make_lines([1, 2]))
    store.add_results({batch.id: [make_result(1)]})
    with pytest.raises(InvalidRequest):
        store.drop_lines(batch.id)
    done = store.update_batch(batch.id, only_from=ACTIVE, status=BatchStatus.COMPLETED)
    store.add_results({batch.id: [make_result(2)]})
    assert list(store.iterate_results(batch.id, is_error=False)) == [make_result(1).content]
    store.drop_lines(batch.id)
    assert store.next_lines(batch.id, after=0, limit=10) == []
    assert list(store.iterate_results(batch.id, is_error=False)) == []
    assert store.get_batch(batch.id) == done
    assert done.counts == RequestCounts(0, 1, 0)
    store.drop_lines(batch.id)


# --- drains


def test_the_latest_drain_of_a_worker_is_kept_until_it_is_deleted(store: Store) -> None:
    first = DrainRecord("w1", "one", 1_700_000_000_123)
    later = dataclasses.replace(first, until_ms=first.until_ms + 5)
    other = DrainRecord("w0", "two", 5)
    for drain in (first, other, later):
        store.put_drain(drain)
    assert list(store.list_drains()) == [other, later]
    store.delete_drain("w1")
    store.delete_drain("w1")
    assert list(store.list_drains()) == [other]


# --- batches made twice


def test_a_batch_that_is_made_again_with_its_key_is_the_same(store: Store) -> None:
    file = add_file(store)
    fields = {"owner": "ann", "metadata": {"a": "b"}, "priority": 3}
    batch = BatchRecord(
        id="",
        endpoint="/v1/completions",
        input_file_id=file.id,
        completion_window="24h",
        status=BatchStatus.VALIDATING,
        created_at=START,
        expires_at=START + 86_400,
        **fields,
    )
    made = store.create_batch(batch, idempotency_key="one")
    later = dataclasses.replace(batch, created_at=START + 9, expires_at=START + 99_999)
    assert store.create_batch(later, idempotency_key="one") == made
    store.update_batch(made.id, only_from=ACTIVE, status=BatchStatus.IN_PROGRESS, total=3)
    assert store.create_batch(later, idempotency_key="one") == store.get_batch(made.id)
    assert len(store.list_batches(limit=9)) == 1
    with pytest.raises(InvalidRequest):
        store.create_batch(dataclasses.replace(batch, priority=4), idempotency_key="one")
    others = [
        store.create_batch(batch, idempotency_key="two"),
        store.create_batch(dataclasses.replace(batch, owner="bob"), idempotency_key="one"),
        store.create_batch(dataclasses.replace(batch, owner=None), idempotency_key="one"),
        store.create_batch(batch),
        store.create_batch(batch),
    ]
    assert len({made.id, *(other.id for other in others)}) == 6


@pytest.mark.parametrize("owner", ["ann", None])
def test_an_owner_has_so_many_batches_open_and_no_more(store: Store, owner: str | None) -> None:
    file = add_file(store)
    fields = {"completion_window": "24h", "created_at": START, "expires_at": START + 86_400}
    batch = BatchRecord(
        id="",
        endpoint="/v1/completions",
        input_file_id=file.id,
        status=BatchStatus.VALIDATING,
        owner=owner,
        **fields,
    )
    first = store.create_batch(batch, max_open=2, idempotency_key="one")
    store.create_batch(batch, max_open=2)
    with pytest.raises(CapacityExceeded):
        store.create_batch(batch, max_open=2)
    assert store.create_batch(batch, max_open=2, idempotency_key="one") == first
    store.create_batch(dataclasses.replace(batch, owner="bob"), max_open=2)
    store.update_batch(first.id, only_from=ACTIVE, status=BatchStatus.FAILED)
    store.create_batch(batch, max_open=2)
    with pytest.raises(CapacityExceeded):
        store.create_batch(batch, max_open=2)


# --- sizes of workers


def test_sizes_of_workers_take_the_place_of_those_before(store: Store) -> None:
    assert list(store.list_worker_sizes()) == []
    store.keep_worker_sizes([WorkerSize(1 << 40, 9), WorkerSize(1 << 30, 12)])
    assert list(store.list_worker_sizes()) == [WorkerSize(1 << 30, 12), WorkerSize(1 << 40, 9)]
    store.keep_worker_sizes([WorkerSize(7, 20)])
    assert list(store.list_worker_sizes()) == [WorkerSize(7, 20)]
    store.keep_worker_sizes([])
    assert list(store.list_worker_sizes()) == []


# --- keys, epochs, and what is not there


def test_a_name_is_free_again_once_its_key_is_revoked(store: Store) -> None:
    old = KeyRecord("key_1", "ci", "0" * 64, created_at=START + 1)
    new = KeyRecord("key_2", "ci", "1" * 64, created_at=START)
    store.add_key(old)
    with pytest.raises(InvalidRequest, match=r"ci|taken"):
        store.add_key(new)
    revoked = store.revoke_key("ci", now=START + 5)
    assert revoked == dataclasses.replace(old, revoked_at=START + 5)
    store.add_key(new)
    assert list(store.list_keys()) == [new, revoked]
    store.revoke_key("ci", now=START + 9)
    with pytest.raises(NotFound, match="ci"):
        store.revoke_key("ci", now=START + 10)


def test_an_epoch_is_never_given_twice(store: Store) -> None:
    counts = (1, 3, 1, 256, 1)
    firsts = [store.reserve_epochs(count) for count in counts]
    assert firsts[0] > 0
    for first, count, following in zip(firsts, counts, firsts[1:], strict=False):
        assert following >= first + count


CALLS: dict[str, Callable[[Store], object]] = {
    "get_file": lambda store: store.get_file("file-0"),
    "open_file": lambda store: store.open_file("file-0"),
    "file_path": lambda store: store.file_path("file-0"),
    "delete_file": lambda store: store.delete_file("file-0"),
    "get_batch": lambda store: store.get_batch("batch_0"),
    "update_batch": lambda store: store.update_batch("batch_0", only_from=ACTIVE, priority=1),
    "add_lines": lambda store: store.add_lines("batch_0", make_lines([1])),
    "no_lines": lambda store: store.add_lines("batch_0", []),
    "next_lines": lambda store: store.next_lines("batch_0", after=0, limit=1),
    "add_results": lambda store: store.add_results({"batch_0": []}),
    "iterate_results": lambda store: store.iterate_results("batch_0", is_error=False),
    "drop_lines": lambda store: store.drop_lines("batch_0"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_what_is_not_there_is_said_to_be_missing(
    store: Store, call: Callable[[Store], object]
) -> None:
    with pytest.raises(NotFound, match=r"file-0|batch_0") as caught:
        call(store)
    assert isinstance(caught.value, GlinthawkError)


def test_a_files_content_is_for_its_owner_only(tmp_path: Path) -> None:
    with_prompts = open_store(tmp_path / "data")
    record = add_file(with_prompts)
    mode = stat.S_IMODE(with_prompts.file_path(record.id).stat().st_mode)
    assert (mode, stat.S_IMODE((tmp_path / "data").stat().st_mode)) == (0o600, 0o700)
    with_prompts.close()
