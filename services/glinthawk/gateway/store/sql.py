"""The store on SQLite and a folder, and how to open it, back it up and bring it back.

    DATA_DIR/glinthawk.db     the database, in WAL mode: glinthawk.db-wal and -shm belong to it
    DATA_DIR/files/           contents of files, one each, named by id; written once
    DATA_DIR/lock             held by the gateway that works on the folder
    DATA_DIR/ballast          room for deletions on a full disk

The folder must be on a local file system: WAL mode needs memory shared between all processes
that have the database open. What is committed survives a killed process and a power cut; it
does not survive the loss of the volume.

**Backup**, while the gateway runs. First the database, then the files, so that every file the
copy lists is in the copy (one deleted between the two is listed without its content):

    mkdir -p BACKUP
    python3 -c "import sqlite3 as s; s.connect('DATA_DIR/glinthawk.db').backup(
        s.connect('BACKUP/glinthawk.db'))"
    cp -a DATA_DIR/files BACKUP/files

The Python line is what `.backup` of the sqlite3 shell does.

Never copy glinthawk.db by itself while the gateway runs: what is still in glinthawk.db-wal would
be missing. With the gateway stopped, a copy of the whole folder is a backup.

**Restore**, with the gateway, stages and workers stopped: put both back into an empty DATA_DIR,
then start. Batches go on from where the backup was taken: lines answered since are answered
again. Contents the restored database does not list are removed at the start. Stages and workers
must start anew too, for epochs are counted from where the backup was taken.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.store.ballast import Ballast
from glinthawk.gateway.store.batches import BatchTable
from glinthawk.gateway.store.blobs import BlobFolder
from glinthawk.gateway.store.database import Database
from glinthawk.gateway.store.drain_rows import DrainTable
from glinthawk.gateway.store.failures import at_folder, translate_file_failures
from glinthawk.gateway.store.files import FileTable
from glinthawk.gateway.store.folder_lock import FolderLock
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.key_rows import KeyTable, raise_epoch
from glinthawk.gateway.store.lines import LineTable
from glinthawk.gateway.store.records import (
    BatchRecord,
    BatchStatus,
    DrainRecord,
    FilePurpose,
    FileRecord,
    KeyRecord,
    LineRecord,
    LineResult,
    WorkerSize,
)
from glinthawk.gateway.store.revisions import upgrade_database
from glinthawk.gateway.store.size_rows import SizeTable

BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another process's before it says that the store is locked."""


class SqlStore(Store):
    """See the module. Made by `open_store`; `Store` says what the methods do.

    ballast: gives way to deletions. lock: released on close; None if another process may be the
    one that works on the folder. clock: seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobFolder,
        *,
        ballast: Ballast,
        lock: FolderLock | None,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._lock = lock
        self._files = FileTable(database, blobs, ballast, clock)
        self._batches = BatchTable(database)
        self._lines = LineTable(database)
        self._drains = DrainTable(database)
        self._sizes = SizeTable(database)
        self._keys = KeyTable(database)

    def add_file(
        self,
        content: Iterable[bytes],
        *,
        purpose: FilePurpose,
        filename: str,
        owner: str | None = None,
    ) -> FileRecord:
        """See `Store`."""
        return self._files.add(content, purpose=purpose, filename=filename, owner=owner)

    def get_file(self, file_id: str) -> FileRecord:
        """See `Store`."""
        return self._files.get(file_id)

    def list_files(
        self,
        *,
        limit: int,
        after: str | None = None,
        purpose: FilePurpose | None = None,
        newest_first: bool = True,
    ) -> Sequence[FileRecord]:
        """See `Store`."""
        return self._files.list(
            limit=limit, after=after, purpose=purpose, newest_first=newest_first
        )

    def open_file(self, file_id: str) -> AbstractContextManager[BinaryIO]:
        """See `Store`."""
        return self._files.open(file_id)

    def file_path(self, file_id: str) -> Path:
        """See `Store`."""
        return self._blobs.path(self._files.get(file_id).id)

    def delete_file(self, file_id: str) -> None:
        """See `Store`."""
        self._files.delete(file_id)

    def create_batch(
        self,
        batch: BatchRecord,
        *,
        idempotency_key: str | None = None,
        max_open: int | None = None,
    ) -> BatchRecord:
        """See `Store`."""
        return self._batches.create(batch, idempotency_key, max_open)

    def get_batch(self, batch_id: str) -> BatchRecord:
        """See `Store`."""
        return self._batches.get(batch_id)

    def list_batches(
        self,
        *,
        limit: int,
        after: str | None = None,
        statuses: Sequence[BatchStatus] | None = None,
        newest_first: bool = True,
    ) -> Sequence[BatchRecord]:
        """See `Store`."""
        return self._batches.list(
            limit=limit, after=after, statuses=statuses, newest_first=newest_first
        )

    def update_batch(
        self, batch_id: str, *, only_from: Sequence[BatchStatus], **changes: Any
    ) -> BatchRecord:
        """See `Store`."""
        return self._batches.update(batch_id, only_from, changes)

    def add_lines(self, batch_id: str, lines: Sequence[LineRecord]) -> Sequence[int]:
        """See `Store`."""
        return self._lines.add(batch_id, lines)

    def next_lines(self, batch_id: str, *, after: int, limit: int) -> Sequence[LineRecord]:
        """See `Store`."""
        return self._lines.next(batch_id, after=after, limit=limit)

    def add_results(self, results: Mapping[str, Sequence[LineResult]]) -> None:
        """See `Store`."""
        self._lines.add_results(results)

    def iterate_results(self, batch_id: str, *, is_error: bool) -> Iterator[bytes]:
        """See `Store`."""
        return self._lines.iterate_results(batch_id, is_error=is_error)

    def drop_lines(self, batch_id: str) -> None:
        """See `Store`."""
        self._lines.drop(batch_id)

    def put_drain(self, drain: DrainRecord) -> None:
        """See `Store`."""
        self._drains.put(drain)

    def delete_drain(self, worker: str) -> None:
        """See `Store`."""
        self._drains.delete(worker)

    def list_drains(self) -> Sequence[DrainRecord]:
        """See `Store`."""
        return self._drains.list()

    def keep_worker_sizes(self, sizes: Sequence[WorkerSize]) -> None:
        """See `Store`."""
        self._sizes.keep(sizes)

    def list_worker_sizes(self) -> Sequence[WorkerSize]:
        """See `Store`."""
        return self._sizes.list()

    def add_key(self, key: KeyRecord) -> None:
        """See `Store`."""
        self._keys.add(key)

    def list_keys(self) -> Sequence[KeyRecord]:
        """See `Store`."""
        return self._keys.list()

    def revoke_key(self, name: str, *, now: int) -> KeyRecord:
        """See `Store`."""
        return self._keys.revoke(name, now=now)

    def reserve_epochs(self, count: int) -> int:
        """See `Store`."""
        return raise_epoch(self._database, count) - count + 1

    def close(self, wait_s: float = 5.0) -> None:
        """See `Store`."""
        self._database.close(wait_s)
        if self._lock is not None:
            self._lock.release()

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half written. Only for who holds the lock."""
        self._blobs.clean(self._files.list_ids())


def open_store(
    data_dir: Path,
    *,
    beside_gateway: bool = False,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
    ballast_bytes: int = 0,
    clock: Callable[[], float] = time.time,
) -> SqlStore:
    """Open the store in a folder, made if it is not there, and bring its tables up to date.

    Args:
        data_dir: the folder, on a local file system.
        beside_gateway: for a short command, such as one about keys: takes no lock, so a gateway
            may be at work on the folder, on the same host, and removes and migrates nothing.
        busy_timeout_s: how long a write waits for one of another process.
        ballast_bytes: room that is kept for deletions on a full disk, where there is as much.
        clock: seconds since 1970.

    Raises:
        InvalidConfig: another gateway works on the folder, or the tables are of a release that
            does not fit.
        StoreUnavailable: the folder cannot be written now.
    """
    ballast = Ballast(data_dir, 0 if beside_gateway else ballast_bytes)
    with at_folder(data_dir):
        try:
            store = _open(data_dir, beside_gateway, busy_timeout_s, ballast, clock)
        except StoreUnavailable as error:
            if beside_gateway or not ballast.helps(error):
                raise
            # A gateway that does not start on a full disk could not delete anything from it.
            ballast.give_way()
            store = _open(data_dir, beside_gateway, busy_timeout_s, ballast, clock)
    ballast.restore(spare_bytes=ballast_bytes)
    return store


def _open(
    data_dir: Path,
    beside_gateway: bool,
    busy_timeout_s: float,
    ballast: Ballast,
    clock: Callable[[], float],
) -> SqlStore:
    with translate_file_failures():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = None if beside_gateway else FolderLock(data_dir)
    database = Database(data_dir, busy_timeout_s=busy_timeout_s)
    try:
        upgrade_database(database, data_dir, only_if_new=beside_gateway)
        blobs = BlobFolder(data_dir / "files")
        store = SqlStore(database, blobs, ballast=ballast, lock=lock, clock=clock)
        if lock is not None:
            store.remove_leftovers()
    except BaseException:
        database.close()
        if lock is not None:
            lock.release()
        raise
    return store
