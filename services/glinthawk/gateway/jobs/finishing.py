"""The end of a batch: what is open gets its error line, the files are written, the lines go.

    finalizing --close open lines--> output file --> error file --> completed | expired | cancelled
                                                                        `--> lines dropped

A crash may come between any two steps, or within one. Each step is one transaction that can be
told from the store, so who comes later goes on where the last one stopped: a file that was
written, but not yet noted in its batch, is found again by its name.
"""

from collections.abc import Callable, Iterator
from functools import partial

from glinthawk.errors import NotFound
from glinthawk.gateway.jobs.patience import Patience
from glinthawk.gateway.jobs.results import build_unanswered, digest_batch
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import BatchRecord, BatchStatus, FilePurpose, FileRecord

CLOSE_LINES = 1000
"""Open lines that are closed in one transaction."""

_PAGE = 100
_PIECE_BYTES = 1 << 18
_CLOCK_STEP_S = 24 * 3600
"""How far the clock may have been set back between two starts."""

_TIME_OF = {
    BatchStatus.COMPLETED: "completed_at",
    BatchStatus.EXPIRED: "expired_at",
    BatchStatus.CANCELLED: "cancelled_at",
}


class Finishing:
    """Brings one batch in `finalizing` to its outcome. now: seconds since 1970."""

    def __init__(
        self, store: Store, batch_id: str, *, patience: Patience, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._batch_id = batch_id
        self._patience = patience
        self._now = now

    def steps(self) -> Iterator[str]:
        """Take one durable step at a time and yield its name; give up after any of them.

        Raises:
            Stopped: the gateway ends.
        """
        batch = self._patience.insist(lambda: self._store.get_batch(self._batch_id))
        if batch.outcome in (BatchStatus.EXPIRED, BatchStatus.CANCELLED):
            yield from self._close_lines(batch.outcome)
        for field, is_error in (("output_file_id", False), ("error_file_id", True)):
            if getattr(batch, field) is None:
                file = self._find_file(batch, is_error=is_error)
                if file is None:
                    file = self._write_file(batch, is_error=is_error)
                    yield "file written"
                if file is not None:
                    self._update(**{field: file.id})
                    yield "file noted"
        if batch.outcome is not None:
            self._update(
                status=batch.outcome,
                outcome=None,
                errors=(),  # of attempts that failed
                **{_TIME_OF[batch.outcome]: int(self._now())},
            )
            yield "batch ended"
        self._patience.insist(lambda: self._store.drop_lines(self._batch_id))
        yield "lines dropped"

    def run(self) -> BatchRecord:
        """Take all steps and return the batch as it is then."""
        for _ in self.steps():
            self._patience.check()
        return self._patience.insist(lambda: self._store.get_batch(self._batch_id))

    def _close_lines(self, outcome: BatchStatus) -> Iterator[str]:
        """Answer the lines that have no answer, some at a time."""
        batch_id, after = self._batch_id, 0
        digest = digest_batch(batch_id)
        while True:
            fetch = partial(self._store.next_lines, batch_id, after=after, limit=CLOSE_LINES)
            lines = self._patience.insist(fetch)
            if not lines:
                return
            results = [build_unanswered(digest, line, outcome) for line in lines]
            self._patience.insist(partial(self._store.add_results, {batch_id: results}))
            after = lines[-1].line_number
            yield "lines closed"

    def _find_file(self, batch: BatchRecord, *, is_error: bool) -> FileRecord | None:
        """Return the file if an earlier attempt wrote it. It would be among the newest."""
        name = _name_file(batch, is_error=is_error)
        after: str | None = None
        oldest = (batch.finalizing_at or 0) - _CLOCK_STEP_S
        while True:
            fetch = partial(
                self._store.list_files, limit=_PAGE, after=after, purpose=FilePurpose.BATCH_OUTPUT
            )
            try:
                page = self._patience.insist(fetch)
            except NotFound:  # the file to go on from was deleted just now
                after = None
                continue
            for file in page:
                if file.created_at < oldest:
                    return None
                if file.filename == name:
                    return file
            if len(page) < _PAGE:
                return None
            after = page[-1].id

    def _write_file(self, batch: BatchRecord, *, is_error: bool) -> FileRecord | None:
        """Write the results into a file; None where there are none."""

        def write() -> FileRecord | None:
            results = self._store.iterate_results(batch.id, is_error=is_error)
            first = next(results, None)
            if first is None:
                return None
            return self._store.add_file(
                self._gather(first, results),
                purpose=FilePurpose.BATCH_OUTPUT,
                filename=_name_file(batch, is_error=is_error),
                owner=batch.owner,
            )

        return self._patience.insist(write)

    def _gather(self, first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
        """Yield all lines in large pieces, unless the gateway ends: then the file is given up."""
        piece = bytearray(first)
        for line in rest:
            if len(piece) >= _PIECE_BYTES:
                self._patience.check()
                yield bytes(piece)
                piece.clear()
            piece += line
        yield bytes(piece)

    def _update(self, **changes: object) -> None:
        self._patience.insist(
            lambda: self._store.update_batch(
                self._batch_id, only_from=(BatchStatus.FINALIZING,), **changes
            )
        )


def _name_file(batch: BatchRecord, *, is_error: bool) -> str:
    return f"{batch.id}_{'error' if is_error else 'output'}.jsonl"


def drop_leftovers(store: Store, patience: Patience) -> None:
    """Forget the lines of ended batches that a crash has left.

    Raises:
        Stopped: the gateway ends.
    """
    final = tuple(status for status in BatchStatus if status.is_final)
    after: str | None = None
    while True:
        fetch = partial(store.list_batches, limit=_PAGE, after=after, statuses=final)
        page = patience.insist(fetch)
        for batch in page:
            patience.insist(partial(store.drop_lines, batch.id))
        if len(page) < _PAGE:
            return
        after = page[-1].id
