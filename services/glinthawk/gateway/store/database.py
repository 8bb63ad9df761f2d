"""One SQLite database, open: who may write when, and what a transaction is.

Writers of this process stand in line for one connection; readers have their own and never
wait. A write transaction takes SQLite's write lock when it begins, so that it cannot fail half
way for want of it. It knows no table.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.store.failures import translate_database_failures
from glinthawk.gateway.store.turns import Turns

DATABASE_NAME = "glinthawk.db"
_WRITER_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "cache_size = -16384",  # KiB; an index of a million lines is hit at random
    "journal_size_limit = 67108864",
)
_READER_PRAGMAS = ("query_only = ON", "cache_size = -2048")
_MAX_IDLE_READERS = 4

TURN_WAIT_S = 10.0
"""How long a write waits for those of this process before it."""


class Database:
    """See the module. data_dir: the folder it lies in, which must be there."""

    def __init__(self, data_dir: Path, *, busy_timeout_s: float) -> None:
        self._turn_to_write = Turns(TURN_WAIT_S)
        self._is_closed = False
        path = data_dir / DATABASE_NAME
        self._writer = _build_engine(
            path, busy_timeout_s, begin="BEGIN IMMEDIATE", pragmas=_WRITER_PRAGMAS, num_idle=1
        )
        self._reader = _build_engine(
            path,
            busy_timeout_s,
            begin="BEGIN",
            pragmas=_READER_PRAGMAS,
            num_idle=_MAX_IDLE_READERS,
        )

    @contextmanager
    def write(self, before: Callable[[], None] | None = None) -> Iterator[Connection]:
        """Enter a transaction that may write; it is on disk once this is left without an error.
        before: called when this write has its turn, and no other.

        Raises:
            StoreUnavailable: nothing was changed; also if too many write, or one for too long.
        """
        with translate_database_failures(), self._turn_to_write:
            try:
                if before is not None:
                    before()
                with self._check_open(self._writer).begin() as connection:
                    yield connection
            except (DBAPIError, sqlite3.Error):
                # A connection keeps what it met when it was made, such as a read-only file,
                # and those of a process share some of it.
                self._reader.dispose()
                self._writer.dispose()
                raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Enter a transaction that sees one state of everything, and cannot write.

        Leave it soon: while it lasts the write-ahead log cannot be cut short.
        """
        with (
            translate_database_failures(),
            self._check_open(self._reader).begin() as connection,
        ):
            yield connection

    def close(self, wait_s: float = 5.0) -> None:
        """Close all connections, once the write under way is over or has taken too long; nothing
        can be done after."""
        self._is_closed = True
        has_turn = self._turn_to_write.take(wait_s)
        self._reader.dispose()
        self._writer.dispose()
        if has_turn:
            self._turn_to_write.give_back()

    def _check_open(self, engine: Engine) -> Engine:
        if self._is_closed:
            raise StoreUnavailable("the store is closed; open it again")
        return engine


def _build_engine(
    path: Path, busy_timeout_s: float, *, begin: str, pragmas: tuple[str, ...], num_idle: int
) -> Engine:
    # isolation_level None keeps the driver from beginning and committing on its own.
    # Parameters stay out of error messages: prompts are among them.
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": busy_timeout_s, "isolation_level": None},
        hide_parameters=True,
        pool_size=num_idle,
        max_overflow=-1,
    )

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
