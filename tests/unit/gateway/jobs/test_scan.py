import io

from glinthawk.gateway.jobs.scan import (
    CHUNK_CHARACTERS,
    CHUNK_LINES,
    ScannedLine,
    chunk,
    decode_chunk,
    encode_chunk,
    scan_lines,
)
from glinthawk.gateway.requests import Endpoint
from unit.gateway.jobs.factories import build_line


def scan(content: bytes, max_line_bytes: int = 1000) -> list[ScannedLine]:
    lines = scan_lines(io.BytesIO(content), Endpoint.COMPLETIONS, max_line_bytes=max_line_bytes)
    return list(lines)


def test_each_line_is_found_where_its_content_lies() -> None:
    lines = [build_line("a"), b"", b"  ", build_line("\u20ac"), build_line("c")]
    content = b"\xef\xbb\xbf" + lines[0] + b"\r\n" + b"\n".join(lines[1:])
    found = scan(content)
    assert [line.number for line in found] == [1, 4, 5]
    assert [line.custom_id for line in found] == ["a", "\u20ac", "c"]
    for line in found:
        assert line.refusal is None
        piece = content[line.offset : line.offset + line.num_bytes]
        assert piece == lines[line.number - 1]


def test_lines_after_one_that_is_too_long_are_found() -> None:
    content = b"x" * 5000 + b"\n" + build_line("a") + b"\n"
    first, second = scan(content)
    assert "longer than 1000 bytes" in (first.refusal or "")
    assert content[second.offset :].startswith(build_line("a"))


def test_bad_lines_are_refused_by_the_name_of_what_is_wrong() -> None:
    content = b"\n".join(
        [
            b"{",
            b"[]",
            build_line(""),
            build_line("a", method="GET"),
            build_line("b", url="/v1/embeddings"),
            build_line("c", url="/v1/chat/completions"),
            build_line("d", body=1),
        ]
    )
    found = scan(content)
    params = [line.param for line in found]
    assert params == [None, None, "custom_id", "method", "url", "url", "body"]
    assert all(f"line {line.number}: " in (line.refusal or "") for line in found)
    assert "the batch's endpoint is '/v1/completions'" in (found[5].refusal or "")
    assert [line.custom_id for line in found] == [None, None, None, "a", "b", "c", "d"]


def test_chunks_are_bounded_and_lose_nothing() -> None:
    many = [ScannedLine(n, n, 1, str(n)) for n in range(2 * CHUNK_LINES + 1)]
    assert [len(part) for part in chunk(many)] == [CHUNK_LINES, CHUNK_LINES, 1]
    large = [ScannedLine(n, n, 1, "x" * (CHUNK_CHARACTERS // 2)) for n in range(5)]
    assert [len(part) for part in chunk(large)] == [2, 2, 1]
    assert list(chunk([])) == []


def test_what_crosses_the_pipe_is_what_was_found() -> None:
    lines = [
        ScannedLine(1, 0, 5, "a\n\u2028\x00"),
        ScannedLine(2, 9, 5, "\ud800"),
        ScannedLine(3, 99, 0, None, "line 3: no", "url"),
    ]
    encoded = encode_chunk(lines)
    assert encoded.count(b"\n") == 1
    assert decode_chunk(encoded) == lines
