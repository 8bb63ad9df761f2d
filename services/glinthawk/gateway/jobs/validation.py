"""The gateway's side of validation: what the process finds goes into the store, in bulk.

Restartable at every moment: lines and results that are there stay as they are, so validating
again from the beginning changes nothing and ends with the same report.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from glinthawk.errors import GlinthawkError
from glinthawk.gateway.batch_input import refuse_repeated
from glinthawk.gateway.bodies import build_line_ids, build_refused_line
from glinthawk.gateway.jobs.patience import Patience
from glinthawk.gateway.jobs.results import digest_batch
from glinthawk.gateway.jobs.scan import ScannedLine, decode_chunk
from glinthawk.gateway.jobs.validate import END_LINE, EXIT_UNREADABLE
from glinthawk.gateway.requests import RefusedLine
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import BatchError, BatchRecord, LineRecord, LineResult
from glinthawk.telemetry.parent import PARENT_VARIABLE

MAX_REPORTED_ERRORS = 20
"""Refused lines that a failed batch names; the rest are as many again of the same kind."""

_CODES = {
    None: "invalid_json_line",
    "custom_id": "invalid_custom_id",
    "method": "invalid_method",
    "url": "invalid_url",
    "body": "invalid_body",
}
_CODE_REPEATED = "duplicate_custom_id"
_CODE_EMPTY = "empty_file"


class ValidationEnded(GlinthawkError):
    """The process that validates ended before it was through; another attempt may succeed."""


@dataclass(frozen=True)
class ValidationReport:
    """What a whole reading of the input found. errors: of the first refused lines."""

    num_lines: int
    num_valid: int
    errors: tuple[BatchError, ...]


@dataclass
class _Tally:
    num_lines: int = 0
    num_refused: int = 0
    errors: list[BatchError] = field(default_factory=list)


class Validation:
    """One validation of one batch. `run` is called once; `interrupt` by any thread."""

    def __init__(
        self, store: Store, batch: BatchRecord, *, max_line_bytes: int, patience: Patience
    ) -> None:
        self._store = store
        self._batch = batch
        self._max_line_bytes = max_line_bytes
        self._patience = patience
        self._digest = digest_batch(batch.id)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> ValidationReport:
        """Put the batch's lines, and the refusals of bad ones, into the store.

        Raises:
            NotFound: the input file is gone.
            ValidationEnded: the process was killed, could not read the file, or not be started.
            Stopped: the gateway ends.
        """
        tally = _Tally()
        for part in self._read_chunks():
            self._keep(part, tally)
        if tally.num_lines == 0:
            message = "the file is empty; write one request in JSON on each line"
            tally.errors.append(BatchError(_CODE_EMPTY, message))
        num_valid = tally.num_lines - tally.num_refused
        return ValidationReport(tally.num_lines, num_valid, tuple(tally.errors))

    def interrupt(self) -> None:
        """Kill the process, so that `run` ends soon: with Stopped if the gateway ends."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def _read_chunks(self) -> Iterator[list[ScannedLine]]:
        """Yield what the process finds. Only a reading of the whole input ends without an error."""
        process = self._start()
        assert process.stdout is not None
        is_whole = False
        try:
            with process.stdout as pipe:
                for line in pipe:
                    if line == END_LINE:
                        is_whole = True
                    elif line.endswith(b"\n"):
                        yield decode_chunk(line)
        finally:
            process.kill()
            code = process.wait()
        self._patience.check()
        if not is_whole:
            raise self._describe_end(code)

    def _start(self) -> subprocess.Popen[bytes]:
        path = self._patience.insist(lambda: self._store.file_path(self._batch.input_file_id))
        command = [sys.executable, "-m", "glinthawk.gateway.jobs.validate", str(path)]
        command += ["--endpoint", self._batch.endpoint]
        command += ["--max-line-bytes", str(self._max_line_bytes)]
        with self._lock:
            self._patience.check()  # who ends the gateway says so first, then interrupts
            self._process = self._spawn(command)
        return self._process

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                env=build_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            raise ValidationEnded(
                f"no process can be started to validate batch {self._batch.id}: {error.strerror}"
            ) from error

    def _describe_end(self, code: int) -> ValidationEnded:
        batch = self._batch
        if code == EXIT_UNREADABLE:
            return ValidationEnded(
                f"input {batch.input_file_id} of batch {batch.id} cannot be read; look at the "
                "volume of the store"
            )
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ValidationEnded(f"the process that validates batch {batch.id} {how}")

    def _keep(self, part: list[ScannedLine], tally: _Tally) -> None:
        """Commit a chunk: first the lines, so that the index says which custom_ids repeat."""
        batch_id = self._batch.id
        records = [
            LineRecord(line.number, line.custom_id, line.offset, line.num_bytes)
            for line in part
            if line.custom_id is not None
        ]
        repeated = set(self._patience.insist(lambda: self._store.add_lines(batch_id, records)))
        refused = [
            (line, refusal)
            for line in part
            if (refusal := _build_refusal(line, is_repeated=line.number in repeated)) is not None
        ]
        results = [
            LineResult(
                refusal.line_number,
                is_error=True,
                content=build_refused_line(
                    build_line_ids(self._digest, refusal.line_number), refusal
                ),
            )
            for _, refusal in refused
        ]
        if results:
            self._patience.insist(lambda: self._store.add_results({batch_id: results}))
        tally.num_lines += len(part)
        tally.num_refused += len(refused)
        for line, refusal in refused[: MAX_REPORTED_ERRORS - len(tally.errors)]:
            code = _CODE_REPEATED if line.number in repeated else _CODES[refusal.param]
            tally.errors.append(
                BatchError(code, refusal.message, line=line.number, param=refusal.param)
            )


def build_environment() -> dict[str, str]:
    """Return the environment of the process: ours, and who its parent is."""
    return {**os.environ, PARENT_VARIABLE: str(os.getpid())}


def _build_refusal(line: ScannedLine, *, is_repeated: bool) -> RefusedLine | None:
    """Return why a line is refused, or None if it is good."""
    if is_repeated:
        assert line.custom_id is not None
        return refuse_repeated(line.number, line.custom_id)
    if line.refusal is None:
        return None
    return RefusedLine(line.number, line.custom_id, line.refusal, line.param)
