"""Reading a batch file: line by line, in bounded memory, whatever the file holds.

The batch command reads its file twice: once for its digest and its number of lines, once for the
work. So it must be a regular file, and stay as it is while the command runs. A job's file is
split and read by the same functions, so that both doors refuse the same lines.
"""

import hashlib
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.gateway.requests import BatchLine, Endpoint, RefusedLine, parse_line

MAX_LINE_BYTES = 64 << 20
"""Longest line that is read; a longer one is refused and skipped without being held."""

_SKIP_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CUSTOM_ID_DIGEST_BYTES = 16


@dataclass(frozen=True)
class InputSummary:
    """What a first reading tells. num_lines: the lines that get an output; not blank ones."""

    sha256: str
    num_lines: int


@dataclass(frozen=True)
class RawLine:
    """A line that is not blank: its number from 1, where its content begins in the file, and
    the content without the line end; None where it is too long to be read."""

    number: int
    offset: int
    content: bytes | None


def check_paths(input_path: Path, output_path: Path) -> None:
    """Refuse paths that cannot work, before anything is started.

    Raises:
        InvalidConfig: the input is not a readable regular file, the output cannot be a file
            of an existing folder, or both are the same file.
    """
    if not input_path.exists():
        raise InvalidConfig(f"input {input_path} does not exist")
    if not input_path.is_file():
        raise InvalidConfig(f"input {input_path} is not a regular file; it is read twice")
    if not os.access(input_path, os.R_OK):
        raise InvalidConfig(f"input {input_path} is not readable; check its permissions")
    if not output_path.parent.is_dir():
        raise InvalidConfig(f"folder {output_path.parent} of the output does not exist; create it")
    if output_path.exists():
        if not output_path.is_file():
            raise InvalidConfig(f"output {output_path} is not a regular file")
        if output_path.samefile(input_path):
            raise InvalidConfig(f"output {output_path} is the input; choose another output")
    elif not os.access(output_path.parent, os.W_OK):
        raise InvalidConfig(f"folder {output_path.parent} of the output is not writable")


def summarize_input(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> InputSummary:
    """Read the whole file once.

    Raises:
        InvalidConfig: it cannot be opened.
        GlinthawkError: reading fails on the way.
    """
    with _open(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        return InputSummary(sha256, sum(1 for _ in split_lines(file, max_line_bytes)))


def read_input(
    path: Path, *, finished: Container[int] = (), max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[BatchLine | RefusedLine]:
    """Yield every line that is not blank, except those whose numbers are in `finished`.

    The first line with a custom_id has it; a later one with the same is refused. Only digests
    of custom_ids are remembered, so memory grows by some 100 bytes a line and no more.

    Raises:
        InvalidConfig: the file cannot be opened.
        GlinthawkError: reading fails on the way.
    """
    seen: set[bytes] = set()
    with _open(path) as file:
        for line in split_lines(file, max_line_bytes):
            parsed = _refuse_repeated(parse_raw_line(line, max_line_bytes), seen)
            if line.number not in finished:
                yield parsed


def find_endpoint(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Endpoint:
    """Return the one endpoint that all requests of a file go to; chat where there is none.

    Raises:
        InvalidConfig: it cannot be opened, or its lines go to several endpoints.
        GlinthawkError: reading fails on the way.
    """
    first: BatchLine | None = None
    with _open(path) as file:
        for line in split_lines(file, max_line_bytes):
            parsed = parse_raw_line(line, max_line_bytes)
            if isinstance(parsed, RefusedLine):
                continue
            if first is not None and parsed.endpoint is not first.endpoint:
                raise InvalidConfig(
                    f"line {first.line_number} of {path} goes to {first.endpoint}, line "
                    f"{parsed.line_number} to {parsed.endpoint}; a gateway's batch has one "
                    "endpoint: make a file of each, or run it without --gateway"
                )
            first = first or parsed
    return Endpoint.CHAT if first is None else first.endpoint


def split_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[RawLine]:
    """Yield the lines that are not blank; at most `max_line_bytes` are held at a time."""
    number = offset = 0
    while line := file.readline(max_line_bytes + len(b"\r\n")):
        number += 1
        start, offset = offset, offset + len(line)
        content = line.rstrip(b"\r\n")
        if number == 1 and content.startswith(_BYTE_ORDER_MARK):
            content = content.removeprefix(_BYTE_ORDER_MARK)
            start += len(_BYTE_ORDER_MARK)
        if len(content) > max_line_bytes:
            while line and not line.endswith(b"\n"):
                line = file.readline(_SKIP_BYTES)
                offset += len(line)
            yield RawLine(number, start, None)
        elif content.strip():
            yield RawLine(number, start, content)


def parse_raw_line(line: RawLine, max_line_bytes: int) -> BatchLine | RefusedLine:
    """Read a line, whatever it holds."""
    if line.content is None:
        message = f"line {line.number}: longer than {max_line_bytes} bytes; split the request"
        return RefusedLine(line.number, None, message)
    return parse_line(line.content, line.number)


def refuse_repeated(line_number: int, custom_id: str) -> RefusedLine:
    """Return the refusal of a line whose custom_id an earlier line has."""
    return RefusedLine(
        line_number,
        None,
        f"line {line_number}: custom_id {custom_id!r} stands in an earlier line; each needs its "
        "own",
        "custom_id",
    )


def _refuse_repeated(parsed: BatchLine | RefusedLine, seen: set[bytes]) -> BatchLine | RefusedLine:
    """Return `parsed`, or its refusal if an earlier line has its custom_id."""
    if parsed.custom_id is None:
        return parsed
    encoded = parsed.custom_id.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(encoded, digest_size=_CUSTOM_ID_DIGEST_BYTES).digest()
    if digest in seen:
        return refuse_repeated(parsed.line_number, parsed.custom_id)
    seen.add(digest)
    return parsed


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    """Open for reading; errors of the system become ours."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidConfig(f"input {path} cannot be read: {error.strerror}") from error
    with file:
        try:
            yield file
        except OSError as error:
            raise GlinthawkError(f"reading input {path} failed: {error.strerror}") from error
