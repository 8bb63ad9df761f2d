from typing import Any

import pytest

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.neutral_fields import refuse_unsupported

NEUTRAL: list[tuple[str, Any]] = [
    ("stream", False), ("stream", None), ("stream_options", None), ("user", "me"),
    ("metadata", {"a": "b"}), ("store", True), ("store", False), ("tools", []),
    ("tools", None), ("tool_choice", "none"), ("tool_choice", "auto"), ("logit_bias", {}),
    ("logit_bias", None), ("response_format", {"type": "text"}), ("suffix", None),
    ("service_tier", "auto"), ("service_tier", "default"), ("parallel_tool_calls", True),
    ("functions", []), ("function_call", "none"), ("best_of", 1), ("best_of", None),
    ("modalities", ["text"]), ("length_penalty", 1.0), ("use_beam_search", False),
    ("skip_special_tokens", True), ("include_stop_str_in_output", False), ("n", 4),
]  # fmt: skip


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize(("name", "value"), NEUTRAL)
def test_neutral_values_are_accepted(name: str, value: Any, is_chat: bool) -> None:
    refuse_unsupported({name: value}, is_chat=is_chat)


UNSUPPORTED: list[tuple[str, Any]] = [
    ("stream", True), ("stream", 0), ("stream_options", {"include_usage": True}),
    ("user", 3), ("metadata", "x"), ("store", 1), ("tools", [{"type": "function"}]),
    ("tool_choice", "required"), ("logit_bias", {"5": 1}),
    ("response_format", {"type": "json_object"}), ("suffix", "tail"), ("service_tier", "flex"),
    ("best_of", 2), ("best_of", True), ("length_penalty", 2), ("length_penalty", True),
    ("skip_special_tokens", False), ("prompt_logprobs", 1), ("temprature", 1), ("", 1),
    ("unknown", None),
]  # fmt: skip


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize(("name", "value"), UNSUPPORTED)
def test_what_would_change_the_answer_is_refused_by_name(
    name: str, value: Any, is_chat: bool
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_unsupported({name: value}, is_chat=is_chat)
    assert caught.value.param == name
    assert name in str(caught.value)


def test_best_of_may_equal_n() -> None:
    refuse_unsupported({"n": 3, "best_of": 3}, is_chat=False)
    refuse_unsupported({"best_of": 1, "n": 3}, is_chat=False)


@pytest.mark.parametrize(
    ("name", "is_chat"),
    [("prompt", True), ("messages", False), ("top_logprobs", False)],
)
def test_fields_of_the_other_endpoint_are_refused(name: str, is_chat: bool) -> None:
    with pytest.raises(InvalidRequest, match=name):
        refuse_unsupported({name: 1}, is_chat=is_chat)


def test_echo_belongs_to_completions() -> None:
    refuse_unsupported({"echo": True}, is_chat=False)
    refuse_unsupported({"echo": False}, is_chat=True)
    with pytest.raises(InvalidRequest, match="echo"):
        refuse_unsupported({"echo": True}, is_chat=True)
