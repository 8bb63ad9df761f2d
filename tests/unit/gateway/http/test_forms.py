"""A form that arrives in pieces of any size is the same form."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.http.errors import RefusedCall
from glinthawk.gateway.http.forms import UploadForm

BOUNDARY = "x-y"
PURPOSE = ('form-data; name="purpose"', b"batch")


def file_part(content: bytes, name: str = "in.jsonl") -> tuple[str, bytes]:
    return f'form-data; name="file"; filename="{name}"', content


def build_form(*parts: tuple[str, bytes]) -> bytes:
    body = b""
    for disposition, content in parts:
        body += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body += content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def read_form(body: bytes, size: int = 7, *, max_file_bytes: int = 1000) -> tuple[str, bytes]:
    async def arrive() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async def read() -> tuple[str, bytes]:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        form = UploadForm(kind, arrive(), max_file_bytes=max_file_bytes)
        name = await form.find_file()
        pieces = []
        while piece := await form.read():
            pieces.append(piece)
        return name, b"".join(pieces)

    return asyncio.run(read())


@given(
    content=st.binary(max_size=200) | st.sampled_from([b"\r\n--x-", b"\r\n--x-y", b"--x-y--\r"]),
    size=st.integers(1, 300),
    is_first=st.booleans(),
)
def test_a_file_arrives_byte_for_byte(content: bytes, size: int, is_first: bool) -> None:
    if b"--x-y" in content:
        content = content.replace(b"\r\n--x-y", b"")
    parts = [file_part(content), PURPOSE]
    body = build_form(*(parts if is_first else parts[::-1]))
    assert read_form(body, size) == ("in.jsonl", content)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (build_form(PURPOSE), "no part 'file'"),
        (build_form(file_part(b"x")), "purpose must be 'batch'"),
        (build_form(file_part(b"x"), (PURPOSE[0], b"vision")), "not 'vision'"),
        (build_form(file_part(b"x"), PURPOSE, PURPOSE), "twice"),
        (build_form(file_part(b"x"), PURPOSE, file_part(b"y")), "two files"),
        (build_form(PURPOSE, ('form-data; name="file"', b"x")), "a file with a name"),
        (build_form(PURPOSE, ('form-data; name="expires_after[seconds]"', b"9"), file_part(b"x")),
         "not a field"),
        (build_form((PURPOSE[0], b"b" * 5000), file_part(b"x")), "longer than 4096"),
        (build_form(*[(f'form-data; name="p{n}"', b"") for n in range(9)]), "more than 8 parts"),
        (build_form(PURPOSE, file_part(b"x"))[:-10], "cut off"),
        (b"no form at all", "cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_form_is_refused_before_its_file_ends(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_form(body)


def test_a_file_over_the_bound_is_refused_while_it_arrives() -> None:
    body = build_form(PURPOSE, file_part(b"x" * 60))
    assert read_form(body, max_file_bytes=60)[1] == b"x" * 60
    with pytest.raises(RefusedCall, match="59 bytes") as caught:
        read_form(body[:-6], max_file_bytes=59)
    assert caught.value.status == 413


def test_a_bad_form_leaves_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_form(b"no form at all")
    assert caplog.records == []


def test_headers_of_a_part_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="header size"):
        read_form(build_form(file_part(b"", "x" * 10_000), PURPOSE), size=1000)
