"""What validation finds in a batch's input, and the form in which it crosses a pipe.

Pure. The process that validates and the gateway meet here; this module knows neither process,
store nor model, and imports nothing large.

    input file --scan_lines--> ScannedLine --chunk--> one JSON line each --decode_chunk--> gateway
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import BinaryIO

from glinthawk.gateway.batch_input import parse_raw_line, split_lines
from glinthawk.gateway.requests import Endpoint, RefusedLine

CHUNK_LINES = 1000
CHUNK_CHARACTERS = 1 << 20
"""Bounds of a chunk: so much is held, and committed, at a time."""


@dataclass(frozen=True)
class ScannedLine:
    """A line of the input: where its content lies, its custom_id if it has a usable one, and
    why it is refused, if it is. Whether an earlier line has its custom_id is not known here."""

    number: int
    offset: int
    num_bytes: int
    custom_id: str | None
    refusal: str | None = None
    param: str | None = None


def scan_lines(file: BinaryIO, endpoint: Endpoint, *, max_line_bytes: int) -> Iterator[ScannedLine]:
    """Yield every line that is not blank. endpoint: that of the batch; no other is accepted."""
    for line in split_lines(file, max_line_bytes):
        parsed = parse_raw_line(line, max_line_bytes)
        num_bytes = 0 if line.content is None else len(line.content)
        refusal = param = None
        if isinstance(parsed, RefusedLine):
            refusal, param = parsed.message, parsed.param
        elif parsed.endpoint is not endpoint:
            refusal, param = _describe_other_endpoint(line.number, parsed.endpoint, endpoint), "url"
        yield ScannedLine(line.number, line.offset, num_bytes, parsed.custom_id, refusal, param)


def chunk(lines: Iterable[ScannedLine]) -> Iterator[list[ScannedLine]]:
    """Yield the lines in runs of bounded size."""
    part: list[ScannedLine] = []
    num_characters = 0
    for line in lines:
        part.append(line)
        num_characters += len(line.custom_id or "") + len(line.refusal or "")
        if len(part) >= CHUNK_LINES or num_characters >= CHUNK_CHARACTERS:
            yield part
            part, num_characters = [], 0
    if part:
        yield part


def encode_chunk(lines: Sequence[ScannedLine]) -> bytes:
    """Return one line of JSON, its line end included."""
    return json.dumps([astuple(line) for line in lines], separators=(",", ":")).encode() + b"\n"


def decode_chunk(line: bytes) -> list[ScannedLine]:
    """Return what `encode_chunk` was given."""
    return [ScannedLine(*fields) for fields in json.loads(line)]


def _describe_other_endpoint(line_number: int, url: Endpoint, endpoint: Endpoint) -> str:
    return (
        f"line {line_number}: url is {str(url)!r}, but the batch's endpoint is {str(endpoint)!r}; "
        "a batch has one endpoint, put the line into a batch of its own"
    )
