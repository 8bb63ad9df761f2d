"""From a batch as it lies in the store to one that can be worked on: validated, or failed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from glinthawk.errors import NotFound
from glinthawk.gateway.jobs.patience import Patience
from glinthawk.gateway.jobs.validation import Validation, ValidationEnded, ValidationReport
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import BatchError, BatchRecord, BatchStatus
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.jobs")

ATTEMPTS = 5
FIRST_PAUSE_S = 0.1
"""How often the validating process may end early before the batch fails, and the pause after the
first time; each one is twice as long as the last."""

_GOES_ON = (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)

_CODE_MISSING = "input_file_missing"
_CODE_FAILED = "validation_failed"


class Preparing:
    """Prepares one batch. `run` is called once; `interrupt` by any thread.

    now: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        batch_id: str,
        *,
        max_line_bytes: int,
        patience: Patience,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._batch_id = batch_id
        self._max_line_bytes = max_line_bytes
        self._patience = patience
        self._now = now
        self._validation: Validation | None = None

    def run(self) -> tuple[BatchRecord, Path | None]:
        """Return the batch, validated or in whatever later status it is, and its input's path
        if it is to be worked on.

        Raises:
            Stopped: the gateway ends.
        """
        insist = self._patience.insist
        batch = insist(partial(self._store.get_batch, self._batch_id))
        if _needs_validation(batch):
            batch = self._validate(batch)
        if batch.errors and batch.status in _GOES_ON:
            # Of attempts that failed; this one has not.
            batch = self._update(batch, batch.status, errors=())
        if batch.status is BatchStatus.FAILED:
            insist(partial(self._store.drop_lines, batch.id))
        if batch.status is not BatchStatus.IN_PROGRESS:
            return batch, None
        try:
            return batch, insist(partial(self._store.file_path, batch.input_file_id))
        except NotFound as error:
            return self._fail(batch, _CODE_MISSING, str(error)), None

    def interrupt(self) -> None:
        """Kill the process that validates: it is started again, unless the gateway ends."""
        if self._validation is not None:
            self._validation.interrupt()

    def _validate(self, batch: BatchRecord) -> BatchRecord:
        for attempt in range(1, ATTEMPTS + 1):
            self._validation = Validation(
                self._store,
                batch,
                max_line_bytes=self._max_line_bytes,
                patience=self._patience,
            )
            try:
                return self._settle(batch, self._validation.run())
            except NotFound as error:
                return self._fail(batch, _CODE_MISSING, str(error))
            except ValidationEnded as error:
                log.error("validation_ended", batch=batch.id, attempt=attempt, error=str(error))
                reason = str(error)
                if attempt < ATTEMPTS:
                    self._patience.pause(FIRST_PAUSE_S * 2 ** (attempt - 1))
        return self._fail(batch, _CODE_FAILED, f"{reason}; {ATTEMPTS} attempts ended early")

    def _settle(self, batch: BatchRecord, report: ValidationReport) -> BatchRecord:
        """Note what validation found; a batch that is being cancelled stays so."""
        changes: dict[str, object]
        if report.num_valid == 0:
            changes = {
                "status": BatchStatus.FAILED,
                "errors": report.errors,
                "failed_at": int(self._now()),
            }
        else:
            changes = {
                "status": BatchStatus.IN_PROGRESS,
                "in_progress_at": int(self._now()),
            }
        batch = self._update(batch, BatchStatus.VALIDATING, total=report.num_lines, **changes)
        if batch.status is BatchStatus.CANCELLING:
            batch = self._update(batch, BatchStatus.CANCELLING, total=report.num_lines)
        log.info(
            "batch_validated",
            batch=batch.id,
            status=str(batch.status),
            lines=report.num_lines,
            valid=report.num_valid,
        )
        return batch

    def _fail(self, batch: BatchRecord, code: str, message: str) -> BatchRecord:
        """End a batch that cannot be worked on; one that is being cancelled goes on to its end."""
        log.error("batch_failed", batch=batch.id, error=message)
        return self._update(
            batch,
            *(BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS),
            status=BatchStatus.FAILED,
            errors=(BatchError(code, message),),
            failed_at=int(self._now()),
        )

    def _update(
        self, batch: BatchRecord, *only_from: BatchStatus, **changes: object
    ) -> BatchRecord:
        return self._patience.insist(
            partial(self._store.update_batch, batch.id, only_from=only_from, **changes)
        )


def _needs_validation(batch: BatchRecord) -> bool:
    """Whether it is not known yet how many lines a batch has."""
    if batch.status is BatchStatus.CANCELLING:
        return batch.counts.total == 0
    return batch.status is BatchStatus.VALIDATING
