"""How many tokens a request may generate, within what the model can hold."""

from dataclasses import dataclass

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.fields import Fields
from glinthawk.gateway.prompts import Prompt

_MAX_TOKENS = (1 << 31) - 1


class ContextTooLong(InvalidRequest):
    """Prompt and limit together are longer than a sequence may be."""


@dataclass(frozen=True)
class Limit:
    """How many tokens may be generated. param: the field that says so, None for a default."""

    num_tokens: int
    param: str | None


def parse_max_tokens(fields: Fields, *, can_be_zero: bool) -> Limit | None:
    """Return the limit that the body sets; OpenAI has an old and a new name for it.

    Raises:
        InvalidRequest: out of range, or the two names say two things.
    """
    limits = []
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.integer(name, low=0, high=_MAX_TOKENS)
        if value == 0 and not can_be_zero:
            raise InvalidRequest(
                f"{name} is 0, which only /v1/completions with echo: true allows; use at least 1",
                param=name,
            )
        if value is not None:
            limits.append(Limit(value, name))
    if len({limit.num_tokens for limit in limits}) > 1:
        raise InvalidRequest(
            f"max_completion_tokens {limits[0].num_tokens} and max_tokens "
            f"{limits[1].num_tokens} differ; set one of them",
            param="max_tokens",
        )
    return limits[0] if limits else None


def fit_limit(prompt: Prompt, limit: Limit | None, max_sequence_length: int) -> int:
    """Return how many tokens may follow `prompt`.

    A limit that the caller set must fit whole; a default is cut to what the model has left.

    Raises:
        ContextTooLong: there is no room for it.
    """
    length = len(prompt.tokens)
    room = max_sequence_length - length
    if limit is not None and limit.param is not None:
        if limit.num_tokens > room:
            raise ContextTooLong(
                f"a prompt of {length} tokens and {limit.param} {limit.num_tokens} make "
                f"{length + limit.num_tokens} tokens; the longest sequence is "
                f"{max_sequence_length}. Shorten the prompt or lower {limit.param}",
                param=limit.param,
            )
        return limit.num_tokens
    if room < 1:
        raise ContextTooLong(
            f"a prompt of {length} tokens leaves no room to generate; the longest sequence is "
            f"{max_sequence_length} tokens. Shorten the prompt",
            param="messages" if limit is None else "prompt",
        )
    return room if limit is None else min(room, limit.num_tokens)


def parse_min_tokens(fields: Fields, lengths: list[int]) -> int:
    """Return min_tokens. lengths: how many tokens may follow each prompt.

    Raises:
        InvalidRequest: it is more than the limit, or the room after a prompt, allows.
    """
    min_tokens = fields.integer("min_tokens", low=0, high=_MAX_TOKENS) or 0
    if min_tokens > min(lengths):
        raise InvalidRequest(
            f"min_tokens {min_tokens} is more than the {min(lengths)} tokens that may be "
            "generated; lower it or raise max_tokens",
            param="min_tokens",
        )
    return min_tokens
