"""The store as plain lists in memory: what SqlStore is compared with, step by step."""

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from glinthawk.errors import CapacityExceeded, InvalidRequest, InvariantBroken, NotFound
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import (
    BatchRecord,
    BatchStatus,
    DrainRecord,
    FilePurpose,
    FileRecord,
    KeyRecord,
    LineRecord,
    LineResult,
    RequestCounts,
    WorkerSize,
)

ASKED = ("endpoint", "input_file_id", "completion_window", "priority", "metadata")
Listed = TypeVar("Listed", FileRecord, BatchRecord)


class ModelStore(Store):
    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._numbers = itertools.count(1)
        self._epoch = 0
        self.files: dict[str, FileRecord] = {}
        self.contents: dict[str, bytes] = {}
        self.batches: dict[str, BatchRecord] = {}
        self.batch_keys: dict[tuple[str | None, str | None], str] = {}
        self.lines: dict[str, dict[int, LineRecord]] = {}
        self.results: dict[str, dict[int, LineResult]] = {}
        self.drains: dict[str, DrainRecord] = {}
        self.worker_sizes: list[WorkerSize] = []
        self.keys: list[KeyRecord] = []

    def add_file(
        self,
        content: Iterable[bytes],
        *,
        purpose: FilePurpose,
        filename: str,
        owner: str | None = None,
    ) -> FileRecord:
        whole = b"".join(content)
        file_id = f"file-{next(self._numbers):032x}"
        record = FileRecord(file_id, purpose, filename, len(whole), int(self._clock()), owner)
        self.files[file_id] = record
        self.contents[file_id] = whole
        self.file_path(file_id).write_bytes(whole)
        return record

    def get_file(self, file_id: str) -> FileRecord:
        return _find(self.files, file_id)

    def list_files(
        self,
        *,
        limit: int,
        after: str | None = None,
        purpose: FilePurpose | None = None,
        newest_first: bool = True,
    ) -> Sequence[FileRecord]:
        wanted = set(FilePurpose) if purpose is None else {purpose}
        rows = _behind(self.files, after, newest_first)
        return [file for file in rows if file.purpose in wanted][:limit]

    def open_file(self, file_id: str) -> AbstractContextManager[BinaryIO]:
        self.get_file(file_id)
        return io.BytesIO(self.contents[file_id])

    def file_path(self, file_id: str) -> Path:
        return self._folder / self.get_file(file_id).id

    def delete_file(self, file_id: str) -> None:
        self.get_file(file_id)
        readers = [b for b in self.batches.values() if b.input_file_id == file_id]
        if any(not batch.status.is_final for batch in readers):
            raise InvalidRequest("in use")
        del self.files[file_id]

    def create_batch(
        self,
        batch: BatchRecord,
        *,
        idempotency_key: str | None = None,
        max_open: int | None = None,
    ) -> BatchRecord:
        former = self.batch_keys.get((batch.owner, idempotency_key))
        if former is not None:
            kept = self.batches[former]
            same = dataclasses.replace(
                batch,
                **{name: getattr(kept, name) for name in vars(kept) if name not in ASKED},
            )
            if same != kept:
                raise InvalidRequest("another batch")
            return kept
        mine = [one for one in self.batches.values() if one.owner == batch.owner]
        if max_open is not None and sum(not one.status.is_final for one in mine) >= max_open:
            raise CapacityExceeded("too many")
        self.get_file(batch.input_file_id)
        created = dataclasses.replace(batch, id=f"batch_{next(self._numbers):032x}")
        if idempotency_key is not None:
            self.batch_keys[batch.owner, idempotency_key] = created.id
        self.batches[created.id] = created
        self.lines[created.id] = {}
        self.results[created.id] = {}
        return created

    def get_batch(self, batch_id: str) -> BatchRecord:
        return _find(self.batches, batch_id)

    def list_batches(
        self,
        *,
        limit: int,
        after: str | None = None,
        statuses: Sequence[BatchStatus] | None = None,
        newest_first: bool = True,
    ) -> Sequence[BatchRecord]:
        wanted = list(BatchStatus) if statuses is None else statuses
        rows = _behind(self.batches, after, newest_first)
        return [batch for batch in rows if batch.status in wanted][:limit]

    def update_batch(
        self, batch_id: str, *, only_from: Sequence[BatchStatus], **changes: Any
    ) -> BatchRecord:
        batch = self.get_batch(batch_id)
        if "counts" in changes or "id" in changes:
            raise InvariantBroken("not changeable")
        if batch.status in only_from:
            total = changes.pop("total", batch.counts.total)
            counts = dataclasses.replace(batch.counts, total=total)
            try:
                batch = dataclasses.replace(batch, counts=counts, **changes)
            except TypeError as error:
                raise InvariantBroken("no such field") from error
            self.batches[batch_id] = batch
        return batch

    def add_lines(self, batch_id: str, lines: Sequence[LineRecord]) -> Sequence[int]:
        self.get_batch(batch_id)
        kept = self.lines[batch_id]
        refused = []
        for line in lines:
            if line.line_number in kept:
                continue
            if any(other.custom_id == line.custom_id for other in kept.values()):
                refused.append(line.line_number)
            else:
                kept[line.line_number] = line
        return refused

    def next_lines(self, batch_id: str, *, after: int, limit: int) -> Sequence[LineRecord]:
        self.get_batch(batch_id)
        answered = self.results[batch_id]
        waiting = [n for n in sorted(self.lines[batch_id]) if n > after and n not in answered]
        return [self.lines[batch_id][number] for number in waiting[:limit]]

    def add_results(self, results: Mapping[str, Sequence[LineResult]]) -> None:
        for batch_id in results:
            self.get_batch(batch_id)
        for batch_id, answers in results.items():
            batch = self.get_batch(batch_id)
            if batch.status.is_final:
                continue
            completed, failed = batch.counts.completed, batch.counts.failed
            for answer in answers:
                if answer.line_number not in self.results[batch_id]:
                    self.results[batch_id][answer.line_number] = answer
                    completed += not answer.is_error
                    failed += answer.is_error
            counts = RequestCounts(batch.counts.total, completed, failed)
            self.batches[batch_id] = dataclasses.replace(batch, counts=counts)

    def iterate_results(self, batch_id: str, *, is_error: bool) -> Iterator[bytes]:
        self.get_batch(batch_id)
        kept = list(self.results[batch_id].values())
        return iter([answer.content for answer in kept if answer.is_error == is_error])

    def drop_lines(self, batch_id: str) -> None:
        if not self.get_batch(batch_id).status.is_final:
            raise InvalidRequest("not final")
        self.lines[batch_id] = {}
        self.results[batch_id] = {}

    def put_drain(self, drain: DrainRecord) -> None:
        self.drains[drain.worker] = drain

    def delete_drain(self, worker: str) -> None:
        self.drains.pop(worker, None)

    def list_drains(self) -> Sequence[DrainRecord]:
        return sorted(self.drains.values(), key=lambda drain: drain.worker)

    def keep_worker_sizes(self, sizes: Sequence[WorkerSize]) -> None:
        self.worker_sizes = sorted(sizes, key=lambda size: size.kv_bytes)

    def list_worker_sizes(self) -> Sequence[WorkerSize]:
        return self.worker_sizes

    def add_key(self, key: KeyRecord) -> None:
        if any(other.name == key.name and other.revoked_at is None for other in self.keys):
            raise InvalidRequest("taken")
        self.keys.append(key)

    def list_keys(self) -> Sequence[KeyRecord]:
        return sorted(self.keys, key=lambda key: key.created_at)

    def revoke_key(self, name: str, *, now: int) -> KeyRecord:
        for index, key in enumerate(self.keys):
            if key.name == name and key.revoked_at is None:
                self.keys[index] = dataclasses.replace(key, revoked_at=now)
                return self.keys[index]
        raise NotFound(name)

    def reserve_epochs(self, count: int) -> int:
        self._epoch += count
        return self._epoch - count + 1

    def close(self, wait_s: float = 5.0) -> None:
        pass


def _find(records: Mapping[str, Listed], record_id: str) -> Listed:
    if record_id not in records:
        raise NotFound(record_id)
    return records[record_id]


def _behind(
    records: Mapping[str, Listed], after: str | None, newest_first: bool
) -> Sequence[Listed]:
    # Sorting is stable, and a dict keeps the order of creation.
    rows = sorted(records.values(), key=lambda record: record.created_at)
    if newest_first:
        rows.reverse()
    if after is None:
        return rows
    return rows[rows.index(_find(records, after)) + 1 :]
