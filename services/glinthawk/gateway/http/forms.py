"""The form that uploads a file, read as it arrives: the file is never held, here or on disk.

    --boundary  field "purpose"  --boundary  file "file": piece, piece, ...  --boundary--

Fields may come before the file or after it. So the file's pieces end only when the whole form
was there and all of it was right: whoever keeps the pieces has kept nothing until then.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.fields import shown
from glinthawk.gateway.http.reading import build_too_large

# It would write a line of its own into the log for every bad form, which the caller is told of.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_MAX_FIELD_BYTES = 4096
_MAX_NAME_CHARACTERS = 255
_MAX_PARTS = 8
_PURPOSE = "batch"

FORM_ROOM_BYTES = 64 << 10
"""What a form may have beside its file: borders, headers and fields."""


@dataclass
class _Part:
    name: str
    is_file: bool
    num_bytes: int = 0


class _PartParser:
    """Splits a form into parts. The file's pieces are in `pieces`, the fields in `fields`."""

    def __init__(self, boundary: bytes, max_file_bytes: int) -> None:
        self._max_file_bytes = max_file_bytes
        self._header = [b"", b""]
        self._disposition = b""
        self._part: _Part | None = None
        self._num_parts = 0
        self.fields: dict[str, bytes] = {}
        self.filename: str | None = None
        self.pieces: deque[bytes] = deque()
        self.is_complete = False
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin_part,
            "on_header_begin": self._begin_header,
            "on_header_field": lambda data, start, end: self._extend_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._extend_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open_part,
            "on_part_data": self._take_data,
            "on_end": self._end,
        }
        parser: Any = MultipartParser  # its callbacks are typed by a dictionary of its own
        self._parser = parser(boundary, callbacks)

    def push(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._parser.write(data)

    def _begin_part(self) -> None:
        self._disposition = b""
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise InvalidRequest(
                f"the form has more than {_MAX_PARTS} parts; send file and purpose"
            )

    def _begin_header(self) -> None:
        self._header = [b"", b""]

    def _extend_header(self, side: int, data: bytes) -> None:
        self._header[side] += data

    def _end_header(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]

    def _open_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        is_file = name == "file"
        self._part = _Part(name, is_file)
        if not is_file:
            if name in self.fields:
                raise InvalidRequest(f"the form has {shown(name)} twice", param=name)
            self.fields[name] = b""
            return
        if self.filename is not None:
            raise InvalidRequest("the form has two files; upload one at a time", param="file")
        if b"filename" not in options:
            raise InvalidRequest("file must be a file with a name, not a value", param="file")
        filename = options[b"filename"].decode("utf-8", "replace")
        self.filename = filename[:_MAX_NAME_CHARACTERS]

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        assert part is not None, "data follows headers"
        part.num_bytes += end - start
        if part.is_file:
            if part.num_bytes > self._max_file_bytes:
                raise build_too_large("the file", self._max_file_bytes)
            self.pieces.append(data[start:end])
            return
        if part.num_bytes > _MAX_FIELD_BYTES:
            raise InvalidRequest(
                f"the field {shown(part.name)} is longer than {_MAX_FIELD_BYTES} bytes",
                param=part.name,
            )
        self.fields[part.name] += data[start:end]

    def _end(self) -> None:
        self.is_complete = True


class UploadForm:
    """An upload as it arrives. body: yields the form's bytes."""

    def __init__(
        self, content_type: str, body: AsyncIterator[bytes], *, max_file_bytes: int
    ) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise InvalidRequest("Content-Type names no boundary of the form's parts")
        self._body = body
        try:
            self._parser = _PartParser(boundary, max_file_bytes)
        except FormParserError as error:
            raise InvalidRequest(f"the form cannot be read: {error}") from error

    async def find_file(self) -> str:
        """Return the name of the file once its part has begun.

        Raises:
            InvalidRequest: the form is wrong, or has no file.
        """
        while self._parser.filename is None and await self._advance():
            pass
        if self._parser.filename is None:
            raise InvalidRequest("the form has no part 'file'", param="file")
        return self._parser.filename

    async def read(self) -> bytes:
        """Return the next piece of the file; nothing once the form is complete and right.

        Raises:
            InvalidRequest: the form is wrong, cut off or too large.
        """
        pieces = self._parser.pieces
        while not pieces and await self._advance():
            pass
        if pieces:
            joined = b"".join(pieces)
            pieces.clear()
            return joined
        self._check()
        return b""

    async def _advance(self) -> bool:
        """Take the next bytes of the body; False: there are no more."""
        try:
            data = await anext(self._body)
        except StopAsyncIteration:
            return False
        try:
            self._parser.push(data)
        except FormParserError as error:
            raise InvalidRequest(f"the form cannot be read: {error}") from error
        return True

    def _check(self) -> None:
        if not self._parser.is_complete:
            raise InvalidRequest("the form is cut off before its last boundary; send it again")
        fields = self._parser.fields
        for name in fields:
            if name != "purpose":
                raise InvalidRequest(
                    f"{shown(name)} is not a field that this endpoint knows; remove it", param=name
                )
        purpose = fields.get("purpose", b"").decode("utf-8", "replace")
        if purpose != _PURPOSE:
            raise InvalidRequest(
                f"purpose must be {_PURPOSE!r}, not {shown(purpose)}", param="purpose"
            )
