from typing import Any

import pytest

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.fields import Fields
from glinthawk.gateway.prompts import MAX_PROMPTS, Prompt, parse_messages, parse_prompts
from unit.gateway.factories import START, ByteTokenizer


def prompts_of(prompt: Any) -> tuple[Prompt, ...]:
    return parse_prompts(Fields({"prompt": prompt}), ByteTokenizer(), 300)


def chat_tokens(*messages: Any) -> tuple[int, ...]:
    return parse_messages(Fields({"messages": list(messages)}), ByteTokenizer(), 300).tokens


def test_all_four_forms_of_a_prompt_are_read() -> None:
    assert prompts_of("ab") == (Prompt((97, 98), "ab"),)
    assert prompts_of(["a", "b"]) == (Prompt((97,), "a"), Prompt((98,), "b"))
    assert prompts_of([5, 6]) == (Prompt((5, 6)),)
    assert prompts_of([[5, 6], [7]]) == (Prompt((5, 6)), Prompt((7,)))


@pytest.mark.parametrize(
    "prompt",
    [
        None, "", [], [[]], [""], ["a", ""], [1, "a"], ["a", 1], [[1], "a"], ["a", [1]], 3, {},
        True, [True], [1.5], [300], [-1], [[1], [300]], [[[1]]], [None], "\ud800", ["\udc00"],
        ["a"] * (MAX_PROMPTS + 1), [1 << 70],
    ],
)  # fmt: skip
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prompts_of(prompt)
    assert "prompt" in str(caught.value)
    assert caught.value.param is not None
    assert caught.value.param.startswith("prompt")


def test_a_token_outside_the_vocabulary_is_named_with_the_limit() -> None:
    with pytest.raises(InvalidRequest, match="300 is outside the model's vocabulary, 0 to 299"):
        prompts_of([1, 300])


def test_text_parts_are_joined_by_line_ends() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat_tokens({"role": "user", "content": parts}) == (START, *b"user:a\nb")


def test_a_developer_is_a_system() -> None:
    assert chat_tokens({"role": "developer", "content": "a"}) == (START, *b"system:a")


def test_empty_content_is_content() -> None:
    assert chat_tokens({"role": "user", "content": ""}) == (START, *b"user:")


def test_fields_of_an_answer_that_was_returned_are_accepted_when_empty() -> None:
    message = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": []}
    assert chat_tokens(message) == (START, *b"assistant:a")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hi", "object"),
        ({"role": "tool", "content": "x"}, "'tool'"),
        ({"role": ["user"], "content": "x"}, "role"),
        ({"content": "x"}, "role"),
        ({"role": "user"}, "content must be a string"),
        ({"role": "user", "content": None}, "content must be a string"),
        ({"role": "user", "content": 3}, "content must be a string"),
        ({"role": "user", "content": []}, "no parts"),
        ({"role": "user", "content": ["a"]}, "parts of type 'text'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "text must be a string"),
        ({"role": "user", "content": "\ud800"}, "surrogate"),
        ({"role": "user", "content": "x", "name": 3}, "name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "tool_calls"),
        ({"role": "user", "content": "refuse me"}, "template refuses"),
    ],
)
def test_other_messages_are_refused_by_name(message: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        chat_tokens(message)
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages")


@pytest.mark.parametrize("messages", [None, [], "hi", {}])
def test_there_must_be_a_message(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match="at least one message"):
        parse_messages(Fields({"messages": messages}), ByteTokenizer(), 300)


def test_a_text_whose_tokens_the_model_has_not_is_refused() -> None:
    for parse, fields in (
        (parse_prompts, {"prompt": "b"}),
        (parse_prompts, {"prompt": ["a", "b"]}),
        (parse_messages, {"messages": [{"role": "user", "content": "b"}]}),
    ):
        with pytest.raises(InvalidRequest, match="it has 98 tokens"):
            parse(Fields(fields), ByteTokenizer(), 98)
