import json

import pytest

from glinthawk.errors import InvariantBroken, PeerUnavailable
from glinthawk.gateway.bodies import build_line_ids, build_output_line, build_unanswered_line
from glinthawk.gateway.remote_lines import normalize_line, split_pieces

IDS = build_line_ids("ab" * 32, 7)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_are_whole_however_they_arrive(size: int) -> None:
    content = "first\n\nthïrd line\n".encode()
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    assert list(split_pieces(pieces)) == content.splitlines(keepends=True)


def test_a_torn_last_line_is_not_taken_for_whole() -> None:
    lines = split_pieces([b"whole\nto", b"rn"])
    assert next(lines) == b"whole\n"
    with pytest.raises(PeerUnavailable, match="4 bytes"):
        next(lines)


def test_a_line_with_a_response_stays_as_it_is() -> None:
    line = build_output_line(IDS, "ä", 400, {"error": {"message": "no"}})
    assert normalize_line(line) == line


def test_an_unanswered_line_gets_a_response_that_says_why() -> None:
    line = build_unanswered_line(IDS, "a", code="batch_expired", message="too late")
    document = json.loads(normalize_line(line))
    assert list(document) == ["id", "custom_id", "response", "error"]
    assert (document["id"], document["custom_id"], document["error"]) == (IDS.line, "a", None)
    assert document["response"]["status_code"] == 503
    error = document["response"]["body"]["error"]
    assert (error["message"], error["code"]) == ("too late", "batch_expired")


@pytest.mark.parametrize("line", [b"no JSON\n", b"[]\n", b'{"response": null, "error": null}\n'])
def test_what_is_no_output_line_is_refused(line: bytes) -> None:
    with pytest.raises(InvariantBroken, match="no answer"):
        normalize_line(line)
