"""The store: files, batches, their lines and results, drains, sizes of workers, keys and the
epoch, all durable.

One interface, so that other databases and object stores can follow; `sql` is the one on SQLite
and a folder. What a method has returned from is on disk. Methods may be called from any thread;
each is one transaction, and leaves nothing half done.

Everywhere:

Raises:
    NotFound: there is no such file or batch.
    StoreUnavailable: the disk is full, or the store is locked or not writable now; nothing was
        changed, and the same call may succeed later.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

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


class Store(ABC):
    """See the module."""

    # --- files

    @abstractmethod
    def add_file(
        self,
        content: Iterable[bytes],
        *,
        purpose: FilePurpose,
        filename: str,
        owner: str | None = None,
    ) -> FileRecord:
        """Keep a file that arrives in pieces; it exists once all of it is on disk.

        An exception from `content` leaves nothing behind and goes on to the caller.
        """

    @abstractmethod
    def get_file(self, file_id: str) -> FileRecord:
        """Return a file's record."""

    @abstractmethod
    def list_files(
        self,
        *,
        limit: int,
        after: str | None = None,
        purpose: FilePurpose | None = None,
        newest_first: bool = True,
    ) -> Sequence[FileRecord]:
        """Return up to `limit` files behind the file with the id `after`, by creation."""

    @abstractmethod
    def open_file(self, file_id: str) -> AbstractContextManager[BinaryIO]:
        """Open a file's content for reading; it stays readable while open, even if deleted."""

    @abstractmethod
    def file_path(self, file_id: str) -> Path:
        """Return where a file's content lies, for another process to read."""

    @abstractmethod
    def delete_file(self, file_id: str) -> None:
        """Forget a file. Raises InvalidRequest while a batch that is not final reads it."""

    # --- batches

    @abstractmethod
    def create_batch(
        self,
        batch: BatchRecord,
        *,
        idempotency_key: str | None = None,
        max_open: int | None = None,
    ) -> BatchRecord:
        """Keep a new batch and return it with its id, which is made here whatever it was given.
        If its owner has made one with that key before, that is returned, and nothing is kept.

        Raises NotFound if its input file is not there, InvalidRequest if the batch of the key
        asks for something else, CapacityExceeded if its owner has `max_open` that are not final.
        """

    @abstractmethod
    def get_batch(self, batch_id: str) -> BatchRecord:
        """Return a batch, with its counts."""

    @abstractmethod
    def list_batches(
        self,
        *,
        limit: int,
        after: str | None = None,
        statuses: Sequence[BatchStatus] | None = None,
        newest_first: bool = True,
    ) -> Sequence[BatchRecord]:
        """Return up to `limit` batches behind the batch with the id `after`, by creation."""

    @abstractmethod
    def update_batch(
        self, batch_id: str, *, only_from: Sequence[BatchStatus], **changes: Any
    ) -> BatchRecord:
        """Change fields of a batch if its status is among `only_from`; return it as it is then.

        Otherwise nothing changes: compare the status that is returned. changes: fields of
        BatchRecord, among them total (of counts).
        """

    # --- lines and results

    @abstractmethod
    def add_lines(self, batch_id: str, lines: Sequence[LineRecord]) -> Sequence[int]:
        """Keep lines; return the numbers of those whose custom_id an earlier line has (these
        are not kept). Lines that are there already, by number, are left as they are."""

    @abstractmethod
    def next_lines(self, batch_id: str, *, after: int, limit: int) -> Sequence[LineRecord]:
        """Return up to `limit` lines without a result whose numbers are above `after`."""

    @abstractmethod
    def add_results(self, results: Mapping[str, Sequence[LineResult]]) -> None:
        """Commit results of lines, by batch id, all in one transaction; counts follow.

        The first result of a line stays; a later one changes nothing, nor does one for a batch
        that is final. A result needs no line: those of an input that are no request have none.
        """

    @abstractmethod
    def iterate_results(self, batch_id: str, *, is_error: bool) -> Iterator[bytes]:
        """Yield output lines in the order of their commit, in bounded memory."""

    @abstractmethod
    def drop_lines(self, batch_id: str) -> None:
        """Forget the lines and results of a batch that is final; its files and counts stay.

        In several transactions, so that others can write in between; call it again after an
        error. Raises InvalidRequest if the batch is not final.
        """

    # --- drains

    @abstractmethod
    def put_drain(self, drain: DrainRecord) -> None:
        """Keep that a worker drains, in place of what was kept of it before."""

    @abstractmethod
    def delete_drain(self, worker: str) -> None:
        """Forget that a worker drains; one of which nothing is kept is no error."""

    @abstractmethod
    def list_drains(self) -> Sequence[DrainRecord]:
        """Return the drains that are kept, by worker."""

    # --- sizes of workers

    @abstractmethod
    def keep_worker_sizes(self, sizes: Sequence[WorkerSize]) -> None:
        """Keep sizes, each once, in place of all that were kept before."""

    @abstractmethod
    def list_worker_sizes(self) -> Sequence[WorkerSize]:
        """Return the sizes that are kept, the smallest first."""

    # --- keys, epoch

    @abstractmethod
    def add_key(self, key: KeyRecord) -> None:
        """Keep a key. Raises InvalidRequest if a valid one has its name."""

    @abstractmethod
    def list_keys(self) -> Sequence[KeyRecord]:
        """Return all keys, revoked ones too, by creation."""

    @abstractmethod
    def revoke_key(self, name: str, *, now: int) -> KeyRecord:
        """Make the valid key of that name invalid. Raises NotFound if there is none."""

    @abstractmethod
    def reserve_epochs(self, count: int) -> int:
        """Raise the counter of epochs by `count` and return the first of the new numbers: no
        number is given out twice."""

    @abstractmethod
    def close(self, wait_s: float = 5.0) -> None:
        """Release what is open, after a write that is under way, but for one that takes longer
        than `wait_s`: what is not committed then is not done."""
