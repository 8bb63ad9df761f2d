"""What goes wrong below the store, in the words of `errors.py`: the one place that translates.

A failure of the disk or of a lock is StoreUnavailable: its transaction is rolled back, and the
same call may succeed later. Anything else that a database complains of is a defect of ours.

Callers of the API read these messages, so no path stands in them: where the store is, whoever
runs the gateway knows, and `at_folder` says it to who opens one.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from glinthawk.errors import (
    GlinthawkError,
    InvalidRequest,
    InvariantBroken,
    StoreUnavailable,
)

_FULL = "is full; free space on its volume, and work goes on"
_LOCKED = (
    "is locked by another process; end what has its database open, such as a backup or an "
    "sqlite3 shell, and work goes on"
)
_UNWRITABLE = "cannot be written; make folder and volume writable for user {user}, and work goes on"
_BROKEN = "had an input/output error; check its volume"
_DAMAGED = "has a damaged database; stop the gateway and restore a backup"

_WAY_OUT_OF_SQLITE = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_READONLY: _UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: _UNWRITABLE,
    sqlite3.SQLITE_PERM: _UNWRITABLE,
    sqlite3.SQLITE_AUTH: _UNWRITABLE,
    sqlite3.SQLITE_IOERR: _BROKEN,
    sqlite3.SQLITE_NOMEM: _BROKEN,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
_TOO_LARGE = (
    "a value is larger than what the store holds, a billion bytes (nothing was changed: {cause}); "
    "make it smaller"
)
_PRIMARY_CODE = 0xFF
"""SQLite's extended codes carry the primary one in their low byte."""

_WAY_OUT_OF_ERRNO = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _UNWRITABLE,
    errno.EPERM: _UNWRITABLE,
    errno.EROFS: _UNWRITABLE,
}


@contextmanager
def translate_database_failures() -> Iterator[None]:
    """Turn what a database raises into our errors."""
    try:
        yield
    except DBAPIError as error:
        raise _describe_database(error.orig) from error
    except sqlite3.Error as error:
        raise _describe_database(error) from error


@contextmanager
def translate_file_failures() -> Iterator[None]:
    """Turn what the file system raises into StoreUnavailable."""
    try:
        yield
    except OSError as error:
        way_out = _WAY_OUT_OF_ERRNO.get(error.errno or 0, _BROKEN)
        raise _build_unavailable(way_out, error.strerror) from error


@contextmanager
def at_folder(data_dir: Path) -> Iterator[None]:
    """Say in messages which folder the store is in."""
    try:
        yield
    except StoreUnavailable as error:
        raise StoreUnavailable(f"data folder {data_dir}: {error}") from error


def _describe_database(cause: BaseException | None) -> GlinthawkError:
    code = getattr(cause, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_TOOBIG:
        return InvalidRequest(_TOO_LARGE.format(cause=cause))
    way_out = None if code is None else _WAY_OUT_OF_SQLITE.get(code & _PRIMARY_CODE)
    if way_out is None:
        return InvariantBroken(f"the store was used wrongly: {cause!r}")
    return _build_unavailable(way_out, cause)


def _build_unavailable(way_out: str, cause: object) -> StoreUnavailable:
    what = way_out.format(user=os.geteuid())
    return StoreUnavailable(
        f"the store {what} (nothing was changed: {cause})", is_full=way_out is _FULL
    )
