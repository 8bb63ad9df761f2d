"""The fields that say how tokens are chosen and where a text ends, with vLLM's ranges."""

from glinthawk.core.sampling import SamplingParams
from glinthawk.errors import InvalidRequest
from glinthawk.gateway.fields import LARGEST_NUMBER, Fields, check_text, is_int, shown

MAX_LOGPROBS = 20
"""Most alternatives whose logprobs one position shows."""

MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 256

_GREEDY_BELOW = 1e-5
"""A lower temperature is greedy, as in vLLM: logits divided by it would overflow."""

_INT64 = 1 << 63
_SEED_MASK = (1 << 64) - 1
"""A negative seed is taken as the unsigned number of the same 64 bits."""
_MAX_INT32 = (1 << 31) - 1


def parse_sampling(fields: Fields, *, default_seed: int) -> SamplingParams:
    """Read the fields that do not depend on the prompt or the endpoint.

    Stop tokens, min_tokens, choice and logprobs are left for the caller to fill in.

    Raises:
        InvalidRequest: a value has the wrong type or is out of range.
    """
    temperature = fields.number("temperature", 1.0, low=0.0, high=2.0)
    seed = fields.integer("seed", low=-_INT64, high=_INT64 - 1)
    return SamplingParams(
        temperature=temperature if temperature >= _GREEDY_BELOW else 0.0,
        top_p=fields.number("top_p", 1.0, low=0.0, high=1.0, above=True),
        top_k=_parse_top_k(fields),
        min_p=fields.number("min_p", 0.0, low=0.0, high=1.0),
        presence_penalty=fields.number("presence_penalty", 0.0, low=-2.0, high=2.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, low=-2.0, high=2.0),
        repetition_penalty=fields.number(
            "repetition_penalty", 1.0, low=0.0, high=LARGEST_NUMBER, above=True
        ),
        seed=default_seed if seed is None else seed & _SEED_MASK,
    )


def parse_stop(fields: Fields, *, can_read_text: bool) -> tuple[str, ...]:
    """Return the stop strings: one string, or a list of them.

    Raises:
        InvalidRequest: too many, an empty one, no strings, or a model whose text is unknown.
    """
    value = fields.get("stop")
    if value is None:
        return ()
    if not isinstance(value, list | str):
        raise InvalidRequest(
            f"stop must be a string or a list of strings, not {shown(value)}", param="stop"
        )
    strings = value if isinstance(value, list) else [value]
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop has {len(strings)} strings; at most {MAX_STOP_STRINGS} are allowed",
            param="stop",
        )
    for string in strings:
        if not check_text(string, "stop"):
            raise InvalidRequest("stop holds an empty string; remove it", param="stop")
    if strings and not can_read_text:
        raise InvalidRequest(
            "stop needs text, and the model has no tokenizer files; use stop_token_ids",
            param="stop",
        )
    return tuple(strings)


def parse_stop_token_ids(fields: Fields, vocab_size: int) -> frozenset[int]:
    """Return the stop tokens of the body.

    Raises:
        InvalidRequest: no list of token ids, or an id outside the vocabulary.
    """
    value = fields.get("stop_token_ids")
    if value is None:
        return frozenset()
    name = "stop_token_ids"
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a list, not {shown(value)}", param=name)
    if len(value) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(
            f"{name} has {len(value)} ids; at most {MAX_STOP_TOKEN_IDS} are allowed", param=name
        )
    return frozenset(check_token_id(token, vocab_size, name) for token in value)


def check_token_id(value: object, vocab_size: int, param: str) -> int:
    """Return `value` if it is a token id of the model.

    Raises:
        InvalidRequest: it is no integer of [0, vocab_size).
    """
    if not isinstance(value, int) or not is_int(value):
        raise InvalidRequest(f"{param}: {shown(value)} is not a token id", param=param)
    if not 0 <= value < vocab_size:
        raise InvalidRequest(
            f"{param}: token id {shown(value)} is outside the model's vocabulary, "
            f"0 to {vocab_size - 1}",
            param=param,
        )
    return value


def parse_num_logprobs(fields: Fields, *, is_chat: bool) -> int | None:
    """Return how many alternatives each position shows; None is no logprobs at all.

    chat: {"logprobs": true, "top_logprobs": 0..20}; completions: {"logprobs": 0..20}.

    Raises:
        InvalidRequest: the wrong form for the endpoint, or too many.
    """
    if not is_chat:
        return fields.integer("logprobs", low=0, high=MAX_LOGPROBS)
    top = fields.integer("top_logprobs", low=0, high=MAX_LOGPROBS)
    if fields.boolean("logprobs"):
        return top or 0
    if top:
        raise InvalidRequest(
            f"top_logprobs {top} asks for logprobs: true as well", param="top_logprobs"
        )
    return None


def _parse_top_k(fields: Fields) -> int | None:
    """Return top_k; 0 and vLLM's -1 switch it off."""
    top_k = fields.integer("top_k", low=-1, high=_MAX_INT32)
    return top_k if top_k is not None and top_k > 0 else None
