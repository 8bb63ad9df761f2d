"""A million lines: what is asked of them goes through an index, and comes in bounded memory."""

import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from glinthawk.gateway.store import lines as lines_module
from glinthawk.gateway.store.records import BatchStatus, LineResult
from glinthawk.gateway.store.sql import SqlStore, open_store
from unit.gateway.store.factories import add_batch, make_line, make_lines, make_result


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


@contextmanager
def record_statements() -> Iterator[list[tuple[str, object]]]:
    statements: list[tuple[str, object]] = []

    def record(
        _connection: object, _cursor: object, statement: str, parameters: object, *_rest: object
    ) -> None:
        if not statement.startswith("BEGIN"):
            rows = parameters[0] if isinstance(parameters, list) else parameters
            statements.append((statement, rows))

    event.listen(Engine, "before_cursor_execute", record)
    yield statements
    event.remove(Engine, "before_cursor_execute", record)


def test_nothing_scans_a_table_or_sorts_whatever_is_asked(store: SqlStore, tmp_path: Path) -> None:
    batch = add_batch(store)
    with record_statements() as statements:
        store.add_lines(batch.id, [make_line(1), make_line(2, "request-1")])
        store.next_lines(batch.id, after=0, limit=10)
        store.add_results({batch.id: [make_result(1)]})
        list(store.iterate_results(batch.id, is_error=False))
        store.list_files(limit=3, after=batch.input_file_id)
        store.list_batches(limit=3, after=batch.id)
        store.update_batch(batch.id, only_from=list(BatchStatus), status=BatchStatus.COMPLETED)
        store.drop_lines(batch.id)
        store.delete_file(batch.input_file_id)
    assert len(statements) > 20
    connection = sqlite3.connect(tmp_path / "glinthawk.db")
    for statement, parameters in statements:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
        steps = [row[3] for row in plan]
        assert not any("SCAN" in step or "TEMP B-TREE" in step for step in steps), statement
    connection.close()


def test_results_of_any_size_are_read_in_bounded_memory(store: SqlStore) -> None:
    batch = add_batch(store)
    for start in range(0, 200, 20):
        big = [make_result(n, content=bytes([n]) * 200_000) for n in range(start, start + 20)]
        store.add_results({batch.id: big})
    tracemalloc.start()
    sizes = [len(content) for content in store.iterate_results(batch.id, is_error=False)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes == [200_000] * 200  # 40 MB
    assert peak_bytes < 4_000_000


def test_a_half_read_iterator_holds_nothing_open(store: SqlStore, tmp_path: Path) -> None:
    """A read transaction left open would keep the write-ahead log from ever being cut."""
    batch = add_batch(store)
    numbers = range(3_000)
    store.add_results({batch.id: [make_result(number) for number in numbers]})
    results = store.iterate_results(batch.id, is_error=False)
    first = next(results)
    store.add_results({batch.id: [make_result(number) for number in range(3_000, 4_000)]})
    connection = sqlite3.connect(tmp_path / "glinthawk.db")
    is_blocked, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    connection.close()
    assert is_blocked == 0
    assert (tmp_path / "glinthawk.db-wal").stat().st_size == 0
    assert [first, *results] == [make_result(number).content for number in range(4_000)]


def test_lines_are_dropped_bit_by_bit_across_gaps(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "_NUMBERS_PER_DROP", 3)
    batch, other = add_batch(store), add_batch(store)
    numbers = [1, 2, 3, 4, 5, 900, 1_000_000, 1_000_001]
    for batch_id in (batch.id, other.id):
        store.add_lines(batch_id, make_lines(numbers))
        store.add_results({batch_id: [LineResult(n, n % 2 == 0, b"x\n") for n in numbers[1:]]})
    store.update_batch(batch.id, only_from=[batch.status], status=BatchStatus.CANCELLED)
    with record_statements() as statements:
        store.drop_lines(batch.id)
    assert sum(statement.startswith("DELETE") for statement, _ in statements) == 8
    assert store.next_lines(batch.id, after=0, limit=10) == []
    for is_error in (True, False):
        assert list(store.iterate_results(batch.id, is_error=is_error)) == []
        assert list(store.iterate_results(other.id, is_error=is_error)) != []
    assert [line.line_number for line in store.next_lines(other.id, after=0, limit=10)] == [1]
