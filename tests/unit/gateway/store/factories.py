"""What tests of the store put into it."""

from collections.abc import Iterable
from typing import Any

from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import (
    BatchRecord,
    BatchStatus,
    FilePurpose,
    FileRecord,
    LineRecord,
    LineResult,
)

START = 1_800_000_000


class FakeClock:
    """Seconds since 1970 that pass when they are told to."""

    def __init__(self) -> None:
        self.now = float(START)

    def __call__(self) -> float:
        return self.now


def add_file(store: Store, content: bytes = b"{}\n", **fields: Any) -> FileRecord:
    defaults = {"purpose": FilePurpose.BATCH, "filename": "input.jsonl"}
    return store.add_file([content], **{**defaults, **fields})


def add_batch(store: Store, input_file_id: str | None = None, **fields: Any) -> BatchRecord:
    """Create a batch that is in progress, over a file of its own if none is given."""
    defaults: dict[str, Any] = {
        "endpoint": "/v1/completions",
        "input_file_id": add_file(store).id if input_file_id is None else input_file_id,
        "completion_window": "24h",
        "status": BatchStatus.IN_PROGRESS,
        "created_at": START,
        "expires_at": START + 86_400,
    }
    return store.create_batch(BatchRecord(id="", **defaults | fields))


def make_line(line_number: int, custom_id: str | None = None) -> LineRecord:
    name = f"request-{line_number}" if custom_id is None else custom_id
    return LineRecord(line_number, name, offset=100 * line_number, num_bytes=99)


def make_lines(numbers: Iterable[int]) -> list[LineRecord]:
    return [make_line(number) for number in numbers]


def make_result(
    line_number: int, *, is_error: bool = False, content: bytes | None = None
) -> LineResult:
    default = f'{{"line": {line_number}}}\n'.encode()
    return LineResult(line_number, is_error, default if content is None else content)
