import json
import math
from typing import Any

import pytest

from glinthawk import errors
from glinthawk.core.step import TokenLogprobs
from glinthawk.gateway.bodies import (
    build_body,
    build_error_body,
    build_error_line,
    build_line_ids,
    build_output_line,
    build_refused_line,
    parse_line_id,
)
from glinthawk.gateway.detokenize import ChoiceResult, FinishReason
from glinthawk.gateway.limits import ContextTooLong
from glinthawk.gateway.logprobs import LOWEST_LOGPROB, build_echo
from glinthawk.gateway.prompts import Prompt
from glinthawk.gateway.requests import Endpoint, ParsedRequest, RefusedLine, UnknownModel
from unit.gateway.factories import END, START, ByteTokenizer, make_logprobs, make_request

DIGEST = "0123456789abcdef" * 4
IDS = build_line_ids(DIGEST, 7)
PROMPT = Prompt(tuple(b"ab"), "ab")


def result_of(text: str = "hi", index: int = 0, **fields: Any) -> ChoiceResult:
    tokens = (*text.encode(), END)
    defaults: dict[str, Any] = {
        "prompt_index": 0,
        "tokens": tokens,
        "offsets": tuple(range(len(tokens))),
        "finish_reason": FinishReason.STOP,
    }
    return ChoiceResult(index=index, text=text, **(defaults | fields))


def body_of(request: ParsedRequest, *results: ChoiceResult) -> dict[str, Any]:
    return build_body(request, results, ByteTokenizer(), body_id="x1", created=123)


def test_a_chat_body_has_openai_form() -> None:
    body = body_of(make_request(Endpoint.CHAT, [PROMPT]), result_of())
    assert body == {
        "id": "chatcmpl-x1",
        "object": "chat.completion",
        "created": 123,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }


def test_a_completions_body_has_openai_form() -> None:
    result = result_of(finish_reason=FinishReason.LENGTH)
    body = body_of(make_request(Endpoint.COMPLETIONS, [PROMPT]), result)
    assert body == {
        "id": "cmpl-x1",
        "object": "text_completion",
        "created": 123,
        "model": "m",
        "choices": [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }


def test_choices_are_sorted_and_usage_counts_each_prompt_once() -> None:
    request = make_request(Endpoint.COMPLETIONS, [PROMPT, Prompt((1, 2, 3))], n=2)
    results = [result_of(str(i), index=i, prompt_index=i // 2) for i in (3, 1, 0, 2)]
    body = body_of(request, *results)
    assert [choice["text"] for choice in body["choices"]] == ["0", "1", "2", "3"]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}


def test_chat_logprobs_show_text_and_bytes() -> None:
    logprobs = tuple(make_logprobs(token, 104, 0xE2) for token in (*b"h", END))
    request = make_request(Endpoint.CHAT, [PROMPT], num_logprobs=2)
    body = body_of(request, result_of("h", logprobs=logprobs))
    first, last = body["choices"][0]["logprobs"]["content"]
    assert first == {
        "token": "h",
        "logprob": -10.4,
        "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -10.4, "bytes": [104]},
            {"token": "\ufffd", "logprob": -22.6, "bytes": [0xE2]},
        ],
    }
    assert last["token"] == "<end>"


def test_completion_logprobs_are_lists_of_one_length() -> None:
    logprobs = tuple(make_logprobs(token, 5) for token in (*b"h", END))
    request = make_request(Endpoint.COMPLETIONS, [PROMPT], num_logprobs=1)
    body = body_of(request, result_of("h", logprobs=logprobs))
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["h", "<end>"],
        "token_logprobs": [-10.4, -25.6],
        # The chosen token is always among them.
        "top_logprobs": [{"\x05": -0.5, "h": -10.4}, {"\x05": -0.5, "<end>": -25.6}],
        "text_offset": [0, 1],
    }


def test_zero_alternatives_show_the_chosen_token_alone() -> None:
    request = make_request(Endpoint.COMPLETIONS, [PROMPT], num_logprobs=0)
    logprobs = (make_logprobs(104), make_logprobs(END))
    shown = body_of(request, result_of("h", logprobs=logprobs))["choices"][0]["logprobs"]
    assert shown["top_logprobs"] is None
    assert shown["token_logprobs"] == [-10.4, -25.6]


def test_an_echoed_prompt_stands_before_text_and_logprobs() -> None:
    request = make_request(Endpoint.COMPLETIONS, [PROMPT], num_logprobs=0, echo=True)
    result = result_of(
        "h",
        logprobs=(make_logprobs(104), make_logprobs(END)),
        prompt_logprobs=(None, make_logprobs(98)),
    )
    choice = body_of(request, result)["choices"][0]
    assert choice["text"] == "abh"
    assert choice["logprobs"]["tokens"] == ["a", "b", "h", "<end>"]
    assert choice["logprobs"]["token_logprobs"] == [None, -9.8, -10.4, -25.6]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]


def test_an_echo_without_generation_scores_the_prompt() -> None:
    request = make_request(Endpoint.COMPLETIONS, [PROMPT], num_logprobs=1, echo=True)
    result = result_of(
        "", tokens=(), offsets=(), logprobs=(), prompt_logprobs=(None, make_logprobs(98, 97))
    )
    body = body_of(request, result)
    assert body["choices"][0]["text"] == "ab"
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [None, {"a": -9.7, "b": -9.8}]
    assert body["usage"]["completion_tokens"] == 0


def test_an_echo_without_logprobs_is_text_only() -> None:
    request = make_request(Endpoint.COMPLETIONS, [PROMPT], echo=True)
    choice = body_of(request, result_of())["choices"][0]
    assert (choice["text"], choice["logprobs"]) == ("abhi", None)


def test_an_echo_of_token_ids_reads_as_the_tokens_do() -> None:
    echo = build_echo(Prompt((START, 97, 0xE2, 0x82, 0xAC, 98)), ByteTokenizer())
    assert echo.text == "a\u20acb"
    assert echo.offsets == (0, 0, 1, 1, 1, 2)


def test_impossible_tokens_have_a_logprob_that_json_can_carry() -> None:
    logprobs = (TokenLogprobs(104, -math.inf, 9, ((1, math.nan),)), make_logprobs(END))
    request = make_request(Endpoint.CHAT, [PROMPT], num_logprobs=1)
    body = body_of(request, result_of("h", logprobs=logprobs))
    entry = body["choices"][0]["logprobs"]["content"][0]
    assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] == LOWEST_LOGPROB
    json.dumps(body, allow_nan=False)


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_token_ids_are_shown_where_asked(endpoint: Endpoint) -> None:
    request = make_request(endpoint, [PROMPT], return_token_ids=True)
    choice = body_of(request, result_of())["choices"][0]
    assert choice["prompt_token_ids"] == [97, 98]
    assert choice["token_ids"] == [104, 105, END]


def test_an_output_line_has_openai_form() -> None:
    line = build_output_line(IDS, "mine", 200, {"a": 1})
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "id": f"batch_req_{DIGEST[:16]}_7",
        "custom_id": "mine",
        "response": {"status_code": 200, "request_id": IDS.request, "body": {"a": 1}},
        "error": None,
    }


def test_a_refused_line_is_a_400_with_the_error_in_its_body() -> None:
    refused = RefusedLine(7, None, "line 7: no", "custom_id")
    document = json.loads(build_refused_line(IDS, refused))
    assert document["custom_id"] is None
    assert document["error"] is None
    assert document["response"]["status_code"] == 400
    assert document["response"]["body"] == {
        "error": {
            "message": "line 7: no",
            "type": "invalid_request_error",
            "param": "custom_id",
            "code": None,
        }
    }


def test_an_error_line_names_the_field() -> None:
    line = build_error_line(IDS, "mine", errors.InvalidRequest("bad", param="top_p"))
    error = json.loads(line)["response"]["body"]["error"]
    assert (error["param"], error["message"]) == ("top_p", "bad")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidRequest("x"), 400, None),
        (errors.UnsupportedModel("x"), 400, None),
        (ContextTooLong("x"), 400, "context_length_exceeded"),
        (errors.Unauthenticated("x"), 401, "invalid_api_key"),
        (errors.NotFound("x"), 404, None),
        (UnknownModel("x"), 404, "model_not_found"),
        (errors.CapacityExceeded("x"), 429, "rate_limit_exceeded"),
        (errors.PeerUnavailable("x"), 503, None),
        (errors.StoreUnavailable("x"), 503, None),
        (errors.StateLost("x"), 500, None),
        (errors.InvariantBroken("x"), 500, None),
    ],
)
def test_errors_have_the_status_of_their_kind_and_a_word_for_a_code(
    error: errors.GlinthawkError, status: int, code: str | None
) -> None:
    found, body = build_error_body(error)
    assert (found, body["error"]["code"]) == (status, code)
    assert (body["error"]["type"] == "invalid_request_error") == (status < 429)


@pytest.mark.parametrize(
    "text", ["a\nb", "\u2028\u2029\x85", "\ud800", "\u20ac \U0001f600", "\x00"]
)
def test_every_text_stays_on_one_line_and_comes_back(text: str) -> None:
    line = build_output_line(IDS, text, 200, {"text": text})
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["custom_id"] == text


def test_line_ids_are_stable_and_tell_their_line() -> None:
    assert build_line_ids(DIGEST, 7) == IDS
    assert parse_line_id(IDS.line, DIGEST) == 7
    others = {build_line_ids(DIGEST, number) for number in range(100)}
    assert len({ids.request for ids in others}) == len({ids.body for ids in others}) == 100


@pytest.mark.parametrize(
    "line_id", [None, 3, "", "batch_req_7", IDS.line + "x", IDS.line + "\n", "x" + IDS.line]
)
def test_foreign_ids_are_of_no_line(line_id: object) -> None:
    assert parse_line_id(line_id, DIGEST) is None
    assert parse_line_id(IDS.line, "f" * 64) is None


def test_text_is_written_as_it_reads() -> None:
    assert "\u20ac \U0001f600".encode() in build_output_line(
        IDS, "a", 200, {"text": "\u20ac \U0001f600"}
    )
