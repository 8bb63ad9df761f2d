"""Fields that Glinthawk does not act upon: which values change nothing, and so may stand.

A value that would change the answer is refused by name instead of being ignored.
"""

from collections.abc import Callable, Mapping
from typing import Any

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.fields import is_int, shown

_Check = Callable[[Any], bool]


def _only(*values: object) -> _Check:
    """Accept exactly these values; 1 is not True and 1.0 is 1."""

    def check(value: object) -> bool:
        return any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in values
        )

    return check


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


_NEVER: _Check = _only()

_NEUTRAL: Mapping[str, _Check] = {
    # What the caller notes for himself.
    "metadata": _is_object,
    "prompt_cache_key": _is_string,
    "safety_identifier": _is_string,
    "service_tier": _only("auto", "default"),
    "store": _is_bool,
    "user": _is_string,
    # OpenAI's.
    "audio": _NEVER,
    "function_call": _only("none", "auto"),
    "functions": _only([]),
    "logit_bias": _only({}),
    "modalities": _only(["text"]),
    "parallel_tool_calls": _is_bool,
    "prediction": _NEVER,
    "reasoning_effort": _NEVER,
    "response_format": _only({"type": "text"}),
    "stream": _only(False),
    "stream_options": _NEVER,
    "suffix": _only(""),
    "tool_choice": _only("none", "auto"),
    "tools": _only([]),
    "verbosity": _NEVER,
    "web_search_options": _NEVER,
    # vLLM's.
    "add_generation_prompt": _only(True),
    "allowed_token_ids": _NEVER,
    "bad_words": _only([]),
    "chat_template": _NEVER,
    "chat_template_kwargs": _only({}),
    "continue_final_message": _only(False),
    "documents": _only([]),
    "include_stop_str_in_output": _only(False),
    "length_penalty": _only(1),
    "priority": _only(0),
    "prompt_logprobs": _NEVER,
    "return_tokens_as_token_ids": _only(False),
    "skip_special_tokens": _only(True),
    "spaces_between_special_tokens": _only(True),
    "structured_outputs": _NEVER,
    "truncate_prompt_tokens": _NEVER,
    "use_beam_search": _only(False),
}

_SAMPLING = frozenset(
    {
        "frequency_penalty",
        "ignore_eos",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "min_tokens",
        "model",
        "n",
        "presence_penalty",
        "repetition_penalty",
        "return_token_ids",
        "seed",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
    }
)

CHAT_FIELDS = _SAMPLING | {"messages", "logprobs", "top_logprobs"}
"""Fields that /v1/chat/completions acts upon."""

COMPLETION_FIELDS = _SAMPLING | {"prompt", "logprobs", "echo"}
"""Fields that /v1/completions acts upon."""

_CHAT_NEUTRAL: Mapping[str, _Check] = {"add_special_tokens": _only(False), "echo": _only(False)}
_COMPLETION_NEUTRAL: Mapping[str, _Check] = {"add_special_tokens": _only(True)}


def refuse_unsupported(body: Mapping[str, Any], *, is_chat: bool) -> None:
    """Check that every field of `body` is acted upon or changes nothing.

    Raises:
        InvalidRequest: a field is unknown, or asks for what is not supported; param names it.
    """
    acted_upon = CHAT_FIELDS if is_chat else COMPLETION_FIELDS
    checks = {**_NEUTRAL, **(_CHAT_NEUTRAL if is_chat else _COMPLETION_NEUTRAL)}
    num_choices = body.get("n") or 1
    for name, value in body.items():
        if name in acted_upon:
            continue
        if name == "best_of":
            if value is not None and not (is_int(value) and value in (1, num_choices)):
                raise InvalidRequest(
                    f"best_of {shown(value)} is not supported; leave it out or set it to n, "
                    f"which is {shown(num_choices)}",
                    param=name,
                )
        elif name not in checks:
            raise InvalidRequest(
                f"{shown(name)} is not a field that this endpoint knows; remove it", param=name
            )
        elif value is not None and not checks[name](value):
            raise InvalidRequest(
                f"{name} {shown(value)} is not supported; leave it out", param=name
            )
