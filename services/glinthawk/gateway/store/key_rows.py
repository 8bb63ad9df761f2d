"""API keys in the database, as hashes, and the counter of epochs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.dialects.sqlite import insert

from glinthawk.errors import InvalidRequest, NotFound
from glinthawk.gateway.store.database import Database
from glinthawk.gateway.store.records import KeyRecord
from glinthawk.gateway.store.tables import COUNTERS, KEYS

_EPOCH = "epoch"


class KeyTable:
    """The methods of `Store` about keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: KeyRecord) -> None:
        """See `Store.add_key`."""
        with self._database.write() as connection:
            rival = connection.scalar(
                select(KEYS.c.id).where(KEYS.c.name == key.name, KEYS.c.revoked_at.is_(None))
            )
            if rival is not None and key.revoked_at is None:
                raise InvalidRequest(
                    f"there is a valid key {key.name!r} already; revoke it first, or choose "
                    "another name",
                    param="name",
                )
            connection.execute(insert(KEYS).values(**dataclasses.asdict(key)))

    def list(self) -> Sequence[KeyRecord]:
        """See `Store.list_keys`."""
        with self._database.read() as connection:
            rows = connection.execute(select(KEYS).order_by(KEYS.c.created_at, KEYS.c.sequence))
            return [_build_record(row) for row in rows]

    def revoke(self, name: str, *, now: int) -> KeyRecord:
        """See `Store.revoke_key`."""
        with self._database.write() as connection:
            row = connection.execute(
                update(KEYS)
                .where(KEYS.c.name == name, KEYS.c.revoked_at.is_(None))
                .values(revoked_at=now)
                .returning(KEYS)
            ).one_or_none()
        if row is None:
            raise NotFound(f"there is no valid key {name!r}; list the keys to see which there are")
        return _build_record(row)


def raise_epoch(database: Database, count: int) -> int:
    """Raise the counter of epochs by `count` and return what it is then."""
    first = insert(COUNTERS).values(name=_EPOCH, value=count)
    with database.write() as connection:
        raised: int = connection.execute(
            first.on_conflict_do_update(
                index_elements=[COUNTERS.c.name], set_={"value": COUNTERS.c.value + count}
            ).returning(COUNTERS.c.value)
        ).scalar_one()
    return raised


def _build_record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        name=row.name,
        sha256=row.sha256,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
