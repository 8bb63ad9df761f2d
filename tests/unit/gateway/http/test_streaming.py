"""Chunks of streams, without a server: which there are, and what is in them."""

import json
from typing import Any

import pytest

from glinthawk.errors import InvalidRequest, InvariantBroken
from glinthawk.gateway.api.stream_options import StreamOptions, take_stream_options
from glinthawk.gateway.detokenize import ChoiceResult, TextDelta
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.http.calls import News
from glinthawk.gateway.http.streaming import ChunkWriter
from glinthawk.gateway.prompts import Prompt
from glinthawk.gateway.requests import Endpoint, ParsedRequest
from glinthawk.scheduler import FinishReason
from unit.gateway.factories import ByteTokenizer, make_request

NO_OPTIONS = StreamOptions()


def delta(text: str, *, index: int = 0, reason: FinishReason | None = None) -> TextDelta:
    tokens = tuple(text.encode())
    return TextDelta(index, 0, text, tokens, tuple(range(len(tokens))), reason)


def end_of(request: ParsedRequest, *texts: str, error: InvariantBroken | None = None) -> Completion:
    choices = tuple(
        ChoiceResult(index, 0, text, tuple(text.encode()), (), FinishReason.LENGTH)
        for index, text in enumerate(texts)
    )
    return Completion("k", request, choices, error)


def write(
    request: ParsedRequest, *news: News, options: StreamOptions = NO_OPTIONS
) -> tuple[list[Any], ChunkWriter]:
    """Return the events: documents, and words such as [DONE]."""
    writer = ChunkWriter(request, ByteTokenizer(), options, body_id="b", created=5)
    events = []
    for event in writer.write(news).decode().split("\n\n")[:-1]:
        assert event.startswith("data: ")
        assert "\n" not in event
        content = event.removeprefix("data: ")
        events.append(json.loads(content) if content.startswith("{") else content)
    return events, writer


CHAT = make_request(Endpoint.CHAT, [Prompt((1, 2))])
TEXT = make_request(Endpoint.COMPLETIONS, [Prompt((97, 98), "ab")])


def test_chat_chunks_are_role_then_text_then_reason() -> None:
    news = [delta("he"), delta("", reason=FinishReason.LENGTH), end_of(CHAT, "he")]
    events, writer = write(CHAT, *news)
    assert events[-1] == "[DONE]"
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "he"},
        {},
    ]
    assert events[0] == {
        "id": "chatcmpl-b",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
    }
    assert events[2]["choices"][0]["finish_reason"] == "length"
    assert writer.is_done


def test_text_that_is_held_back_makes_no_chunk() -> None:
    held = TextDelta(0, 0, "", (104,), (0,), None)
    assert write(TEXT, held)[0] == []
    events, writer = write(CHAT, held)
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""}
    ]
    assert not writer.is_done


def test_a_choice_that_was_not_heard_of_comes_whole_at_the_end() -> None:
    events, _ = write(TEXT, end_of(TEXT, "xy"))
    assert events[0]["choices"] == [
        {"index": 0, "text": "xy", "logprobs": None, "finish_reason": "length"}
    ]
    assert events[1:] == ["[DONE]"]


def test_usage_is_null_until_the_last_chunk_which_has_no_choices() -> None:
    options = StreamOptions(include_usage=True)
    events, _ = write(TEXT, delta("x"), end_of(TEXT, "xyz"), options=options)
    assert [event["usage"] for event in events[:-2]] == [None, None]
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_an_error_is_the_last_event() -> None:
    events, writer = write(CHAT, delta("he"), end_of(CHAT, error=InvariantBroken("broken")))
    assert events[-1] == {
        "error": {"message": "broken", "type": "server_error", "param": None, "code": None}
    }
    assert "[DONE]" not in events
    assert writer.is_done


def test_line_ends_of_a_text_do_not_end_an_event() -> None:
    text = "a\n\nb\r\u2028\x85c"
    events, _ = write(TEXT, delta(text))
    assert events[0]["choices"][0]["text"] == text


def test_token_ids_are_shown_where_asked() -> None:
    request = make_request(Endpoint.COMPLETIONS, [Prompt((97, 98), "ab")], return_token_ids=True)
    events, _ = write(request, delta("x"), delta("y"))
    assert events[0]["choices"][0]["prompt_token_ids"] == [97, 98]
    assert [event["choices"][0]["token_ids"] for event in events] == [[120], [121]]
    assert "prompt_token_ids" not in events[1]["choices"][0]


def test_stream_fields_are_taken_off_the_body() -> None:
    body: dict[str, Any] = {
        "a": 1,
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    assert take_stream_options(body) == StreamOptions(include_usage=True)
    assert body == {"a": 1}
    assert take_stream_options({"stream": True}) == StreamOptions()
    assert take_stream_options({"stream": False, "stream_options": None}) is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
    ],
)
def test_wrong_stream_fields_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        take_stream_options(body)
    assert caught.value.param == param
