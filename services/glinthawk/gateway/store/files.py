"""Files in the database: a row exists exactly while the whole content does.

The content goes to disk before the row, and the row goes away before the content, so a process
that is killed leaves at most a blob without a row, which the next start removes.
"""

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from sqlalchemy import Connection, Row, delete, insert, select

from glinthawk.errors import InvalidRequest, NotFound, StoreUnavailable
from glinthawk.gateway.fields import shown
from glinthawk.gateway.store.ballast import Ballast
from glinthawk.gateway.store.blobs import BlobFolder
from glinthawk.gateway.store.database import Database
from glinthawk.gateway.store.paging import fetch_page
from glinthawk.gateway.store.records import BatchStatus, FilePurpose, FileRecord
from glinthawk.gateway.store.tables import BATCHES, FILES

_NOT_FINAL = [status.value for status in BatchStatus if not status.is_final]


class FileTable:
    """The methods of `Store` about files. ballast: gives way to deletions on a full disk. clock:
    seconds since 1970."""

    def __init__(
        self, database: Database, blobs: BlobFolder, ballast: Ballast, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._ballast = ballast
        self._clock = clock

    def add(
        self, content: Iterable[bytes], *, purpose: FilePurpose, filename: str, owner: str | None
    ) -> FileRecord:
        """See `Store.add_file`."""
        _check_text(filename)
        file_id = f"file-{uuid.uuid4().hex}"
        num_bytes = self._blobs.write(file_id, content)
        record = FileRecord(file_id, purpose, filename, num_bytes, int(self._clock()), owner)
        try:
            with self._database.write() as connection:
                connection.execute(insert(FILES).values(**vars(record) | {"purpose": str(purpose)}))
        except BaseException:
            self._blobs.remove(file_id)
            raise
        return record

    def get(self, file_id: str) -> FileRecord:
        """See `Store.get_file`."""
        with self._database.read() as connection:
            return _fetch(connection, file_id)

    def list(
        self, *, limit: int, after: str | None, purpose: FilePurpose | None, newest_first: bool
    ) -> Sequence[FileRecord]:
        """See `Store.list_files`."""
        rows = select(FILES)
        if purpose is not None:
            rows = rows.where(FILES.c.purpose == purpose.value)
        with self._database.read() as connection:
            page = fetch_page(
                connection, rows, FILES, limit=limit, after=after, newest_first=newest_first
            )
        return [_build_record(row) for row in page]

    def list_ids(self) -> frozenset[str]:
        """Return the ids of all files."""
        with self._database.read() as connection:
            return frozenset(connection.scalars(select(FILES.c.id)))

    def open(self, file_id: str) -> BinaryIO:
        """See `Store.open_file`."""
        self.get(file_id)
        content = self._blobs.open(file_id)
        if content is None:
            raise NotFound(
                f"the content of file {file_id!r} is not there any more: it was deleted just "
                "now, or the volume of the gateway lost it; upload it again, or restore a backup"
            )
        return content

    def delete(self, file_id: str) -> None:
        """See `Store.delete_file`."""
        try:
            self._delete_row(file_id)
        except StoreUnavailable as error:
            if not self._ballast.helps(error):
                raise
            # It gives way in the turn of this write, so that no other takes its room.
            self._delete_row(file_id, before=self._ballast.give_way)
        self._blobs.remove(file_id)
        self._ballast.restore()

    def _delete_row(self, file_id: str, before: Callable[[], None] | None = None) -> None:
        with self._database.write(before) as connection:
            _fetch(connection, file_id)
            reader = connection.scalars(
                select(BATCHES.c.id)
                .where(BATCHES.c.input_file_id == file_id, BATCHES.c.status.in_(_NOT_FINAL))
                .limit(1)
            ).one_or_none()
            if reader is not None:
                raise InvalidRequest(
                    f"file {file_id!r} is the input of batch {reader!r}, which is not over; "
                    "cancel that batch or wait for its end",
                    param="file_id",
                )
            connection.execute(delete(FILES).where(FILES.c.id == file_id))


def _fetch(connection: Connection, file_id: str) -> FileRecord:
    row = connection.execute(select(FILES).where(FILES.c.id == file_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no file {shown(file_id)}")
    return _build_record(row)


def _build_record(row: Row[Any]) -> FileRecord:
    return FileRecord(
        id=row.id,
        purpose=FilePurpose(row.purpose),
        filename=row.filename,
        num_bytes=row.num_bytes,
        created_at=row.created_at,
        owner=row.owner,
    )


def _check_text(filename: str) -> None:
    try:
        filename.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the filename {filename!r} is no Unicode text; rename the file", param="file"
        ) from error
