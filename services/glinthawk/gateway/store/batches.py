"""Batches in the database: rows to records and back, and changes by compare-and-set."""

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from glinthawk.errors import CapacityExceeded, InvalidRequest, InvariantBroken, NotFound
from glinthawk.gateway.fields import shown
from glinthawk.gateway.store.database import Database
from glinthawk.gateway.store.paging import fetch_page
from glinthawk.gateway.store.records import BatchError, BatchRecord, BatchStatus, RequestCounts
from glinthawk.gateway.store.tables import BATCH_KEYS, BATCHES, FILES

_CHANGEABLE = {field.name for field in dataclasses.fields(BatchRecord)} - {"id", "counts"} | {
    "total"
}

_OPEN = [status.value for status in BatchStatus if not status.is_final]
_ASKED = ("endpoint", "input_file_id", "completion_window", "priority", "metadata")
"""What a batch was asked to be, by its maker."""


class BatchTable:
    """The methods of `Store` about batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, batch: BatchRecord, idempotency_key: str | None, max_open: int | None
    ) -> BatchRecord:
        """See `Store.create_batch`."""
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        counts = dataclasses.asdict(values.pop("counts"))
        values["id"] = f"batch_{uuid.uuid4().hex}"
        with self._database.write() as connection:
            former = _find_by_key(connection, batch, idempotency_key)
            if former is not None:
                return former
            if max_open is not None:
                _check_room(connection, batch.owner, max_open)
            file_id = batch.input_file_id
            if connection.scalar(select(FILES.c.id).where(FILES.c.id == file_id)) is None:
                raise NotFound(f"there is no file {file_id!r} to be the input of a batch")
            connection.execute(insert(BATCHES).values(**_encode(values), **counts))
            row = find_batch(connection, values["id"])
            if idempotency_key is not None:
                connection.execute(
                    insert(BATCH_KEYS).values(
                        owner=batch.owner or "",
                        idempotency_key=idempotency_key,
                        batch=row.sequence,
                    )
                )
            return _build_record(row)

    def get(self, batch_id: str) -> BatchRecord:
        """See `Store.get_batch`."""
        with self._database.read() as connection:
            return _build_record(find_batch(connection, batch_id))

    def list(
        self,
        *,
        limit: int,
        after: str | None,
        statuses: Sequence[BatchStatus] | None,
        newest_first: bool,
    ) -> Sequence[BatchRecord]:
        """See `Store.list_batches`."""
        rows = select(BATCHES)
        if statuses is not None:
            rows = rows.where(BATCHES.c.status.in_([status.value for status in statuses]))
        with self._database.read() as connection:
            page = fetch_page(
                connection, rows, BATCHES, limit=limit, after=after, newest_first=newest_first
            )
        return [_build_record(row) for row in page]

    def update(
        self, batch_id: str, only_from: Sequence[BatchStatus], changes: Mapping[str, Any]
    ) -> BatchRecord:
        """See `Store.update_batch`."""
        unknown = sorted(changes.keys() - _CHANGEABLE)
        if unknown:
            raise InvariantBroken(
                f"{', '.join(unknown)} of a batch cannot be changed, only "
                f"{', '.join(sorted(_CHANGEABLE))}"
            )
        with self._database.write() as connection:
            row = find_batch(connection, batch_id)
            if changes and row.status in {status.value for status in only_from}:
                matching = update(BATCHES).where(BATCHES.c.sequence == row.sequence)
                connection.execute(matching.values(**_encode(changes)))
                row = find_batch(connection, batch_id)
            return _build_record(row)


def find_batch(connection: Connection, batch_id: str) -> Row[Any]:
    """Return a batch's row. Raises NotFound if there is no such batch."""
    row = connection.execute(select(BATCHES).where(BATCHES.c.id == batch_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no batch {shown(batch_id)}")
    return row


def _check_room(connection: Connection, owner: str | None, max_open: int) -> None:
    """Refuse one more batch to who has as many open as may be."""
    num_open = connection.scalar(
        select(func.count())
        .select_from(BATCHES)
        .where(BATCHES.c.owner == owner, BATCHES.c.status.in_(_OPEN))
    )
    if (num_open or 0) >= max_open:
        whose = "all callers" if owner is None else f"key {owner!r}"
        raise CapacityExceeded(
            f"{num_open} batches of {whose} are not over, and {max_open} may be (max_key_batches "
            "of the gateway); wait until one is over, or cancel one"
        )


def _find_by_key(
    connection: Connection, batch: BatchRecord, idempotency_key: str | None
) -> BatchRecord | None:
    """Return the batch that was made with a key before; None if there is none."""
    if idempotency_key is None:
        return None
    row = connection.execute(
        select(BATCHES)
        .join(BATCH_KEYS, BATCH_KEYS.c.batch == BATCHES.c.sequence)
        .where(
            BATCH_KEYS.c.owner == (batch.owner or ""),
            BATCH_KEYS.c.idempotency_key == idempotency_key,
        )
    ).one_or_none()
    if row is None:
        return None
    former = _build_record(row)
    differing = [name for name in _ASKED if getattr(former, name) != getattr(batch, name)]
    if differing:
        raise InvalidRequest(
            f"batch {former.id!r} was made with this idempotency key, and differs in "
            f"{', '.join(differing)}; take another key for another batch"
        )
    return former


def _encode(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what a record holds into what a column holds."""
    encoded: dict[str, Any] = {}
    for name, value in values.items():
        if name == "errors":
            encoded[name] = [dataclasses.asdict(error) for error in value]
        elif name == "metadata":
            encoded[name] = dict(value)
        else:
            encoded[name] = value.value if isinstance(value, Enum) else value
    return encoded


def _build_record(row: Row[Any]) -> BatchRecord:
    plain = {name: value for name, value in row._mapping.items() if name in _CHANGEABLE}
    del plain["total"]
    return BatchRecord(
        **plain
        | {
            "id": row.id,
            "status": BatchStatus(row.status),
            "outcome": None if row.outcome is None else BatchStatus(row.outcome),
            "counts": RequestCounts(row.total, row.completed, row.failed),
            "errors": tuple(BatchError(**error) for error in row.errors),
        }
    )
