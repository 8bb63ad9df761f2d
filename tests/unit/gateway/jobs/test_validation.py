"""Validation with the real process and the real store."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from glinthawk.gateway.jobs.patience import Patience, Stopped
from glinthawk.gateway.jobs.preparing import ATTEMPTS, Preparing
from glinthawk.gateway.jobs.validation import Validation, ValidationEnded, ValidationReport
from glinthawk.gateway.store.records import BatchRecord, BatchStatus
from glinthawk.gateway.store.sql import SqlStore, open_store
from unit.gateway.jobs.factories import (
    MAX_LINE_BYTES,
    add_batch,
    await_true,
    build_line,
    find_validating,
)

MIB = 1024
"""In KiB, as /proc counts memory."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with_store = open_store(tmp_path / "data", busy_timeout_s=0.1)
    yield with_store
    with_store.close()


def make_patience() -> Patience:
    return Patience("validating", threading.Event())


def validate(store: SqlStore, batch: BatchRecord) -> ValidationReport:
    validation = Validation(store, batch, max_line_bytes=MAX_LINE_BYTES, patience=make_patience())
    return validation.run()


def dump(store: SqlStore, batch: BatchRecord) -> tuple[object, ...]:
    return (
        store.next_lines(batch.id, after=0, limit=10**6),
        list(store.iterate_results(batch.id, is_error=True)),
        list(store.iterate_results(batch.id, is_error=False)),
        store.get_batch(batch.id).counts,
    )


def test_good_lines_wait_and_bad_ones_have_their_answer(store: SqlStore) -> None:
    lines = [
        build_line("a"),
        b"{no json",
        build_line("a"),
        b"",
        build_line("b", url="/v1/chat/completions"),
        b"x" * (MAX_LINE_BYTES + 1),
        build_line("c"),
        build_line("b"),
    ]
    batch = add_batch(store, lines)
    report = validate(store, batch)
    assert (report.num_lines, report.num_valid) == (7, 2)
    waiting = store.next_lines(batch.id, after=0, limit=100)
    assert [(line.line_number, line.custom_id) for line in waiting] == [(1, "a"), (7, "c")]
    answers = [json.loads(line) for line in store.iterate_results(batch.id, is_error=True)]
    assert [answer["custom_id"] for answer in answers] == [None, None, "b", None, None]
    errors = [answer["response"]["body"]["error"] for answer in answers]
    assert [error["param"] for error in errors] == [None, "custom_id", "url", None, "custom_id"]
    assert all(answer["response"]["status_code"] == 400 for answer in answers)
    assert [error.line for error in report.errors] == [2, 3, 5, 6, 8]
    assert [error.code for error in report.errors] == [
        "invalid_json_line",
        "duplicate_custom_id",
        "invalid_url",
        "invalid_json_line",
        "duplicate_custom_id",
    ]


def test_custom_ids_repeat_across_chunks(store: SqlStore) -> None:
    batch = add_batch(store, [build_line(f"id-{n % 1500}") for n in range(3000)])
    report = validate(store, batch)
    assert (report.num_lines, report.num_valid) == (3000, 1500)
    waiting = store.next_lines(batch.id, after=0, limit=10_000)
    assert [line.line_number for line in waiting] == list(range(1, 1501))


def test_validating_again_changes_nothing(store: SqlStore) -> None:
    batch = add_batch(store, [build_line(f"id-{n % 40}") for n in range(60)] + [b"[]"])
    first = validate(store, batch)
    before = dump(store, batch)
    assert validate(store, batch) == first
    assert dump(store, batch) == before


def test_killed_in_the_middle_it_starts_again_to_the_same_end(store: SqlStore) -> None:
    lines = [build_line(f"id-{n % 39_000}") for n in range(40_000)]
    batch, undisturbed = add_batch(store, lines), add_batch(store, lines)
    expected = validate(store, undisturbed)
    killed = threading.Event()

    def kill_once() -> None:
        await_true(lambda: bool(store.next_lines(batch.id, after=2000, limit=1)))
        for process in find_validating():
            os.kill(process, signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill_once)
    thread.start()
    preparing = Preparing(
        store, batch.id, max_line_bytes=MAX_LINE_BYTES, patience=make_patience(), now=lambda: 5.0
    )
    batch, path = preparing.run()
    thread.join()
    assert killed.is_set()
    assert batch.status is BatchStatus.IN_PROGRESS
    assert batch.in_progress_at == 5
    assert path is not None
    assert batch.counts.total == expected.num_lines
    assert batch.counts.failed == expected.num_lines - expected.num_valid == 1000
    lines_of = dump(store, batch)[0]
    assert lines_of == dump(store, undisturbed)[0]


def test_a_store_that_is_locked_meanwhile_is_waited_for(store: SqlStore, tmp_path: Path) -> None:
    batch = add_batch(store, [build_line(f"id-{n}") for n in range(3000)])
    other = sqlite3.connect(
        tmp_path / "data" / "glinthawk.db", isolation_level=None, check_same_thread=False
    )
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(1.5, lambda: other.execute("ROLLBACK"))
    timer.start()
    with capture_logs() as logs:
        report = validate(store, batch)
    timer.join()
    other.close()
    assert report.num_valid == 3000
    assert len(store.next_lines(batch.id, after=0, limit=5000)) == 3000
    events = [line["event"] for line in logs]
    assert events == ["store_unavailable", "store_available_again"]


def test_a_process_that_always_ends_early_fails_the_batch(store: SqlStore, tmp_path: Path) -> None:
    batch = add_batch(store, [build_line("a")])
    store.file_path(batch.input_file_id).unlink()
    with pytest.raises(ValidationEnded, match="cannot be read"):
        validate(store, batch)
    preparing = Preparing(
        store, batch.id, max_line_bytes=MAX_LINE_BYTES, patience=make_patience(), now=lambda: 5.0
    )
    batch, path = preparing.run()
    assert batch.status is BatchStatus.FAILED
    assert path is None
    assert f"{ATTEMPTS} attempts" in batch.errors[0].message


def test_stopping_ends_the_process(store: SqlStore) -> None:
    batch = add_batch(store, [build_line(f"id-{n}") for n in range(50_000)])
    stopped = threading.Event()
    patience = Patience("validating", stopped)
    validation = Validation(store, batch, max_line_bytes=MAX_LINE_BYTES, patience=patience)

    def stop() -> None:
        await_true(lambda: bool(find_validating()))
        stopped.set()
        validation.interrupt()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped):
        validation.run()
    thread.join()
    assert find_validating() == []


def test_the_process_is_small_and_knows_no_model_and_no_database() -> None:
    code = (
        "import sys, glinthawk.gateway.jobs.validate\n"
        "large = {'torch', 'transformers', 'tokenizers', 'sqlalchemy', 'numpy', 'grpc'}\n"
        "sys.exit(repr(large & set(sys.modules)) if large & set(sys.modules) else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=child_environment(), check=False
    )
    assert run.returncode == 0, run.stderr


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


MEASURE = """
import sys, threading
from pathlib import Path
import glinthawk.gateway.jobs.validation as module
from glinthawk.gateway.jobs.patience import Patience
from glinthawk.gateway.store.sql import open_store
from unit.gateway.jobs.factories import MAX_LINE_BYTES, add_batch, build_line

def peak(process):
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

store = open_store(Path(sys.argv[1]))
num_lines = int(sys.argv[2])
batch = add_batch(store, (build_line(f"id-{n}") for n in range(num_lines)))
validation = module.Validation(
    store, batch, max_line_bytes=MAX_LINE_BYTES, patience=Patience("x", threading.Event())
)
child = 0
add_lines = validation._store.add_lines
def add(batch_id, lines):
    global child
    try:
        child = max(child, peak(validation._process.pid))
    except (OSError, IndexError):
        pass
    return add_lines(batch_id, lines)
store.add_lines = add
report = validation.run()
assert report.num_valid == num_lines
print(peak("self"), child)
"""


def measure(folder: Path, num_lines: int) -> tuple[int, int]:
    """Validate in a process of its own; return peak KiB there and in the validating process."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(num_lines)],
        capture_output=True,
        env=child_environment(),
        check=False,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    gateway, child = map(int, run.stdout.split())
    return gateway, child


def check_memory(folder: Path, num_lines: int) -> None:
    few, many = measure(folder / "few", 10_000), measure(folder / "many", num_lines)
    for small, large in zip(few, many, strict=True):
        assert small > 5 * MIB
        assert large - small < 64 * MIB
    assert many[1] < 64 * MIB


def test_memory_stays_flat_as_the_file_grows(tmp_path: Path) -> None:
    check_memory(tmp_path, 200_000)


@pytest.mark.acceptance
def test_memory_stays_flat_up_to_a_million_lines(tmp_path: Path) -> None:
    check_memory(tmp_path, 1_000_000)
