"""Sizes of attention workers in the database."""

import dataclasses
from collections.abc import Sequence

from sqlalchemy import delete, insert, select

from glinthawk.gateway.store.database import Database
from glinthawk.gateway.store.records import WorkerSize
from glinthawk.gateway.store.tables import WORKER_SIZES


class SizeTable:
    """The methods of `Store` about sizes of workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, sizes: Sequence[WorkerSize]) -> None:
        """See `Store.keep_worker_sizes`."""
        with self._database.write() as connection:
            connection.execute(delete(WORKER_SIZES))
            if sizes:
                connection.execute(
                    insert(WORKER_SIZES), [dataclasses.asdict(size) for size in sizes]
                )

    def list(self) -> Sequence[WorkerSize]:
        """See `Store.list_worker_sizes`."""
        with self._database.read() as connection:
            rows = connection.execute(select(WORKER_SIZES).order_by(WORKER_SIZES.c.kv_bytes))
            return [WorkerSize(row.kv_bytes, row.seen_at) for row in rows]
