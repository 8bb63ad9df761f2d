"""Workers that drain, in the database."""

import dataclasses
from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from glinthawk.gateway.store.database import Database
from glinthawk.gateway.store.records import DrainRecord
from glinthawk.gateway.store.tables import DRAINS


class DrainTable:
    """The methods of `Store` about drains."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, drain: DrainRecord) -> None:
        """See `Store.put_drain`."""
        values = dataclasses.asdict(drain)
        with self._database.write() as connection:
            connection.execute(
                insert(DRAINS)
                .values(**values)
                .on_conflict_do_update(index_elements=[DRAINS.c.worker], set_=values)
            )

    def delete(self, worker: str) -> None:
        """See `Store.delete_drain`."""
        with self._database.write() as connection:
            connection.execute(delete(DRAINS).where(DRAINS.c.worker == worker))

    def list(self) -> Sequence[DrainRecord]:
        """See `Store.list_drains`."""
        with self._database.read() as connection:
            rows = connection.execute(select(DRAINS).order_by(DRAINS.c.worker))
            return [DrainRecord(row.worker, row.instance, row.until_ms) for row in rows]
