"""Lines of batches and their results, a million and more of each, in bounded memory.

A line is waiting while no result has its number; nothing else says so, so the two cannot
disagree. Results are numbered in the order of their commit, for only one transaction writes
at a time; that order is what they are read back in, page by page.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, exists, func, select, update

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.store.batches import find_batch
from glinthawk.gateway.store.custom_ids import decode_custom_id, encode_custom_id
from glinthawk.gateway.store.database import Database
from glinthawk.gateway.store.records import BatchStatus, LineRecord, LineResult
from glinthawk.gateway.store.tables import BATCHES, LINES, RESULTS

_LINE_COLUMNS = (
    "batch",
    "line_number",
    "custom_key",
    "long_custom_id",
    "byte_offset",
    "num_bytes",
)
_RESULT_COLUMNS = ("batch", "line_number", "is_error", "content")

_PAGE_ROWS = 1_000
_PAGE_BYTES = 1 << 20
"""A page of results ends at whichever of the two comes first, so memory is bounded."""

_NUMBERS_PER_QUERY = 1_000
_NUMBERS_PER_DROP = 5_000
"""Dropping a million lines at once would hold up every other writer for seconds."""


class LineTable:
    """The methods of `Store` about lines and results."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch_id: str, lines: Sequence[LineRecord]) -> Sequence[int]:
        """See `Store.add_lines`."""
        with self._database.write() as connection:
            batch = find_batch(connection, batch_id).sequence
            rows = [_build_row(batch, line) for line in lines]
            num_added = _insert_new(connection, LINES, _LINE_COLUMNS, rows)
            if num_added == len(lines):
                return []
            numbers = [line.line_number for line in lines]
            kept = _find_kept(connection, batch, numbers)
        return [number for number in numbers if number not in kept]

    def next(self, batch_id: str, *, after: int, limit: int) -> Sequence[LineRecord]:
        """See `Store.next_lines`."""
        is_answered = exists().where(
            RESULTS.c.batch == LINES.c.batch, RESULTS.c.line_number == LINES.c.line_number
        )
        with self._database.read() as connection:
            batch = find_batch(connection, batch_id).sequence
            rows = connection.execute(
                select(LINES)
                .where(LINES.c.batch == batch, LINES.c.line_number > after, ~is_answered)
                .order_by(LINES.c.line_number)
                .limit(limit)
            ).all()
        return [
            LineRecord(
                line_number=row.line_number,
                custom_id=decode_custom_id(row.custom_key, row.long_custom_id),
                offset=row.byte_offset,
                num_bytes=row.num_bytes,
            )
            for row in rows
        ]

    def add_results(self, results: Mapping[str, Sequence[LineResult]]) -> None:
        """See `Store.add_results`."""
        with self._database.write() as connection:
            for batch_id, answers in results.items():
                batch = find_batch(connection, batch_id)
                if not BatchStatus(batch.status).is_final:
                    _insert_results(connection, batch.sequence, answers)

    def iterate_results(self, batch_id: str, *, is_error: bool) -> Iterator[bytes]:
        """See `Store.iterate_results`."""
        with self._database.read() as connection:
            batch = find_batch(connection, batch_id).sequence
        return self._iterate_pages(batch, is_error=is_error)

    def drop(self, batch_id: str) -> None:
        """See `Store.drop_lines`."""
        with self._database.read() as connection:
            batch = find_batch(connection, batch_id)
        if not BatchStatus(batch.status).is_final:
            raise InvalidRequest(
                f"batch {batch_id!r} is {batch.status}, so its lines are needed; cancel it first"
            )
        for table in (LINES, RESULTS):
            while self._drop_some(table, batch.sequence):
                pass

    def _iterate_pages(self, batch: int, *, is_error: bool) -> Iterator[bytes]:
        behind = 0
        while True:
            with self._database.read() as connection:
                page = _fetch_results(connection, batch, is_error=is_error, behind=behind)
            if not page:
                return
            behind = page[-1][0]
            for _sequence, content in page:
                yield content

    def _drop_some(self, table: Table, batch: int) -> bool:
        """Drop the rows of the next few line numbers; return whether there were any."""
        with self._database.write() as connection:
            first = connection.scalar(
                select(func.min(table.c.line_number)).where(table.c.batch == batch)
            )
            if first is None:
                return False
            connection.execute(
                delete(table).where(
                    table.c.batch == batch, table.c.line_number < first + _NUMBERS_PER_DROP
                )
            )
            return True


def _build_row(batch: int, line: LineRecord) -> tuple[Any, ...]:
    key, long_custom_id = encode_custom_id(line.custom_id)
    return batch, line.line_number, key, long_custom_id, line.offset, line.num_bytes


def _insert_new(
    connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> int:
    """Insert rows in order, leaving out those that clash with one that is there; count them.

    Rows go to the driver as they are: SQLAlchemy would take longer over each than SQLite does.
    """
    if not rows:
        return 0
    statement = (
        f"INSERT INTO {table.name} ({', '.join(columns)}) "
        f"VALUES ({', '.join('?' * len(columns))}) ON CONFLICT DO NOTHING"
    )
    options = {"preserve_rowcount": True}
    return connection.exec_driver_sql(statement, list(rows), options).rowcount


def _find_kept(connection: Connection, batch: int, numbers: Sequence[int]) -> set[int]:
    kept: set[int] = set()
    for start in range(0, len(numbers), _NUMBERS_PER_QUERY):
        wanted = numbers[start : start + _NUMBERS_PER_QUERY]
        kept.update(
            connection.scalars(
                select(LINES.c.line_number).where(
                    LINES.c.batch == batch, LINES.c.line_number.in_(wanted)
                )
            )
        )
    return kept


def _insert_results(connection: Connection, batch: int, answers: Sequence[LineResult]) -> None:
    """Insert the first result of each line that has none, and count them on the batch."""
    firsts: dict[int, LineResult] = {}
    for answer in answers:
        firsts.setdefault(answer.line_number, answer)
    num_new = {
        is_error: _insert_new(
            connection,
            RESULTS,
            _RESULT_COLUMNS,
            [
                (batch, answer.line_number, is_error, answer.content)
                for answer in firsts.values()
                if answer.is_error == is_error
            ],
        )
        for is_error in (False, True)
    }
    connection.execute(
        update(BATCHES)
        .where(BATCHES.c.sequence == batch)
        .values(
            completed=BATCHES.c.completed + num_new[False], failed=BATCHES.c.failed + num_new[True]
        )
    )


def _fetch_results(
    connection: Connection, batch: int, *, is_error: bool, behind: int
) -> list[tuple[int, bytes]]:
    """Return a page of results, as sequence and content, behind a sequence."""
    rows = connection.execute(
        select(RESULTS.c.sequence, RESULTS.c.content)
        .where(
            RESULTS.c.batch == batch,
            RESULTS.c.is_error == is_error,
            RESULTS.c.sequence > behind,
        )
        .order_by(RESULTS.c.sequence)
        .limit(_PAGE_ROWS)
    )
    page: list[tuple[int, bytes]] = []
    num_bytes = 0
    for sequence, content in rows:
        page.append((sequence, content))
        num_bytes += len(content)
        if num_bytes >= _PAGE_BYTES:
            rows.close()
            break
    return page
