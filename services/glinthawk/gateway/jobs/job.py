"""A batch in progress, as the gateway remembers it between the store and the engine."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from glinthawk.errors import InvariantBroken
from glinthawk.gateway.jobs.results import digest_batch
from glinthawk.gateway.progress import RateMeter, RunNumbers
from glinthawk.gateway.requests import (
    ModelContext,
    ParsedRequest,
    RefusedLine,
    check_model,
    parse_line,
    parse_request,
)
from glinthawk.gateway.store.records import BatchRecord, BatchStatus, LineRecord

_UNREADABLE = "its input cannot be read; the log has the reason"


@dataclass(frozen=True)
class OpenLine:
    """A line that the engine has. num_tokens: charged to its job, the output as expected."""

    line: LineRecord
    num_sequences: int
    num_tokens: int


@dataclass(frozen=True)
class JobProgress:
    """How a batch stands. Figures of lines are 0 while it is validated."""

    batch_id: Annotated[str, Field(description="Of the batch.")]
    status: Annotated[BatchStatus, Field(description="As in the batch object.")]
    num_lines: Annotated[int, Field(description="Lines of its input.")] = 0
    num_done: Annotated[int, Field(description="Lines that are answered.")] = 0
    num_failed: Annotated[int, Field(description="Of these, those answered with an error.")] = 0
    tokens_per_s: Annotated[float, Field(description="In and out, lately.")] = 0.0
    eta_s: Annotated[
        float | None, Field(description="Seconds until it is over; null while not known.")
    ] = None
    problem: Annotated[
        str | None, Field(description="Why it does not get on, in words that name no path.")
    ] = None


class Job:
    """One thread uses it. path: of the input. now_s: monotonic.

    waiting: lines that were fetched and go next; cursor: the last number that was fetched.
    is_closed: it ends before all of its lines are answered. retry_at_s: when its input, which
    could not be read, is tried again.
    """

    def __init__(self, batch: BatchRecord, path: Path | None, now_s: float) -> None:
        counts = batch.counts
        self.batch = batch
        self.path = path
        self.digest = digest_batch(batch.id)
        self.waiting: deque[LineRecord] = deque()
        self.cursor = 0
        self.is_fetched = path is None
        self.is_closed = False
        self.open: dict[int, OpenLine] = {}
        self.retry_at_s: float | None = None
        self.num_tokens_in = 0
        self.num_tokens_out = 0
        self._num_done_before = counts.completed + counts.failed
        self.num_done = self._num_done_before
        self.num_failed = counts.failed
        self._meter = RateMeter(now_s)

    @property
    def is_idle(self) -> bool:
        """Whether every line was begun, and has ended in the engine."""
        return self.is_fetched and not self.waiting and not self.open

    def close(self) -> None:
        """Begin no more lines."""
        self.waiting.clear()
        self.is_fetched = True
        self.is_closed = True

    def measure(self, now_s: float) -> JobProgress:
        """Return how far it is."""
        numbers = RunNumbers(
            num_lines=self.batch.counts.total,
            num_done=self.num_done,
            num_failed=self.num_failed,
            num_done_before=self._num_done_before,
            num_prompt_tokens=self.num_tokens_in,
            num_generated_tokens=self.num_tokens_out,
        )
        rates = self._meter.measure(now_s, numbers)
        return JobProgress(
            batch_id=self.batch.id,
            status=self.batch.status,
            num_lines=numbers.num_lines,
            num_done=numbers.num_done,
            num_failed=numbers.num_failed,
            tokens_per_s=rates.prompt_tokens_per_s + rates.generated_tokens_per_s,
            eta_s=rates.eta_s,
            problem=None if self.retry_at_s is None else _UNREADABLE,
        )


def read_line(path: Path, line: LineRecord) -> bytes:
    """Return a line's content from the input.

    Raises:
        OSError: the system does not let it be read.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(line.offset)
        content = bytearray()
        while len(content) < line.num_bytes:
            piece = file.read(line.num_bytes - len(content))
            if not piece:
                break
            content += piece
        return bytes(content)


def parse_content(
    content: bytes, line: LineRecord, model: ModelContext, *, run_seed: int, names: Collection[str]
) -> ParsedRequest:
    """Return the request that a line asks for. names: under which the model is served; none
    lets every name pass. A line need not name a model: files of the batch command run as they are.

    Raises:
        InvalidRequest: its body is wrong.
        UnknownModel: it asks for another model.
        InvariantBroken: the file is not the one that was validated.
    """
    parsed = parse_line(content, line.line_number)
    if isinstance(parsed, RefusedLine) or parsed.custom_id != line.custom_id:
        raise InvariantBroken(
            f"line {line.line_number} of the input is not the one that was validated"
        )
    request = parse_request(parsed, model, run_seed=run_seed)
    if names and request.model:
        check_model(request.model, names)
    return request
