"""Input and output files together: a run that is cut off at any byte goes on rightly."""

import json
from collections import Counter
from pathlib import Path

import pytest

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.batch_input import read_input, summarize_input
from glinthawk.gateway.batch_output import OutputFile
from glinthawk.gateway.bodies import (
    build_error_line,
    build_line_ids,
    build_output_line,
    build_refused_line,
)
from glinthawk.gateway.requests import RefusedLine, parse_request
from glinthawk.gateway.sidecar import RunIdentity
from unit.gateway.factories import make_model


def request_of(custom_id: str, **body: object) -> bytes:
    document = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "x"} | body,
    }
    return json.dumps(document).encode()


INPUT = b"\n".join(
    [
        request_of("a"), b"no json", b"", request_of("b", top_p=7), request_of("a"), b"[]",
        request_of("a"), request_of("caf\u00e9"), b"{}", request_of("d"),
    ]
)  # fmt: skip

EXPECTED = Counter({None: 5, "a": 1, "b": 1, "caf\u00e9": 1, "d": 1})


def answer_all(source: Path, target: Path) -> int:
    """Answer what is not answered yet, without a model; return how many lines that were."""
    identity = RunIdentity(summarize_input(source).sha256, "model")
    with OutputFile(target, identity, clock=lambda: 0.0) as output:
        num_answered = 0
        for line in read_input(source, finished=output.finished.line_numbers):
            ids = build_line_ids(output.run_digest, line.line_number)
            if isinstance(line, RefusedLine):
                answer = build_refused_line(ids, line)
            else:
                try:
                    parse_request(line, make_model(), run_seed=0)
                    answer = build_output_line(ids, line.custom_id, 200, {})
                except InvalidRequest as error:
                    answer = build_error_line(ids, line.custom_id, error)
            output.append([answer])
            num_answered += 1
    return num_answered


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(INPUT)
    return path


def test_every_line_has_one_answer(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert answer_all(source, target) == summarize_input(source).num_lines == 9
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert Counter(answer["custom_id"] for answer in answers) == EXPECTED
    nameless = [answer for answer in answers if answer["custom_id"] is None]
    messages = [answer["response"]["body"]["error"]["message"] for answer in nameless]
    assert [message.split(":")[0] for message in messages] == [
        "line 2", "line 5", "line 6", "line 7", "line 9",
    ]  # fmt: skip
    assert "'a'" in messages[1]


def test_a_run_cut_off_at_any_byte_goes_on_to_the_same_answers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    target = tmp_path / "out.jsonl"
    answer_all(source, target)
    whole = target.read_bytes()
    for num_kept in range(0, len(whole) + 1, 3):
        target.write_bytes(whole[:num_kept])
        assert answer_all(source, target) == 9 - whole[:num_kept].count(b"\n")
        assert target.read_bytes() == whole


def test_a_finished_run_that_is_started_again_does_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    answer_all(source, target)
    before = target.read_bytes()
    assert answer_all(source, target) == 0
    assert target.read_bytes() == before
