"""Requests at the door: from a line of a batch file to frozen, fully checked data.

Everything that can be refused without running the model is refused here, by the name of the
field at fault, so that the engine behind never meets a request it cannot compute. This module
knows text, tokens and limits; it knows no scheduler, no worker and no file.

    bytes --parse_line--> BatchLine --parse_request--> ParsedRequest --> engine
                `-------> RefusedLine      `-- raises InvalidRequest
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NoReturn

from glinthawk.core.sampling import SamplingParams
from glinthawk.errors import InvalidRequest, NotFound
from glinthawk.gateway.fields import Fields, check_text, name_kind, shown
from glinthawk.gateway.limits import Limit, fit_limit, parse_max_tokens, parse_min_tokens
from glinthawk.gateway.neutral_fields import refuse_unsupported
from glinthawk.gateway.prompts import Prompt, parse_messages, parse_prompts
from glinthawk.gateway.sampling_fields import (
    parse_num_logprobs,
    parse_sampling,
    parse_stop,
    parse_stop_token_ids,
)
from glinthawk.models.tokenizer import Tokenizer

MAX_CHOICES = 128
"""Most choices (`n`) of one prompt."""

MAX_SEQUENCES = 4096
"""Most choices of all prompts of a request: the engine takes a request up in one piece, while all
others wait."""

DEFAULT_COMPLETION_TOKENS = 16
"""Tokens that /v1/completions generates when the body does not say, as OpenAI has it."""

_MAX_DIGITS = 100

_SEED_MASK = (1 << 63) - 1


class UnknownModel(NotFound):
    """A request names a model that is not served."""

    param = "model"


class Endpoint(StrEnum):
    """The URL of a request, which decides the form of its body and of its answer."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class ModelContext:
    """What parsing must know of the model.

    max_sequence_length: prompt and generated tokens together. stop_token_ids: the model's own
    end tokens. vocab_size: rows of its embedding; None takes the tokenizer's number of tokens.
    """

    tokenizer: Tokenizer
    max_sequence_length: int
    stop_token_ids: frozenset[int]
    vocab_size: int | None = None

    @property
    def num_token_ids(self) -> int:
        """Token ids of the model: 0 to one less."""
        return self.tokenizer.vocab_size if self.vocab_size is None else self.vocab_size


@dataclass(frozen=True)
class BatchLine:
    """One well-formed line of a batch file; its body is not yet looked at."""

    line_number: int
    custom_id: str
    endpoint: Endpoint
    body: dict[str, Any]


@dataclass(frozen=True)
class RefusedLine:
    """A line that is no request. custom_id is None where the line has none of its own."""

    line_number: int
    custom_id: str | None
    message: str
    param: str | None = None


@dataclass(frozen=True)
class ChoiceRequest:
    """One sequence to generate. index: its place in the answer, prompt by prompt."""

    index: int
    prompt_index: int
    max_new_tokens: int
    sampling: SamplingParams


@dataclass(frozen=True)
class ParsedRequest:
    """A request whose every field was checked.

    choices: `n` for each prompt, ordered by index; the choices of one prompt share its tokens.
    A choice with max_new_tokens 0 is only echoed: it wants prompt logprobs at most.
    model: echoed in the answer; `check_model` compares it.
    """

    endpoint: Endpoint
    model: str
    prompts: tuple[Prompt, ...]
    n: int
    choices: tuple[ChoiceRequest, ...]
    stop: tuple[str, ...] = ()
    echo: bool = False
    num_logprobs: int | None = None
    return_token_ids: bool = False

    def choices_of(self, prompt_index: int) -> tuple[ChoiceRequest, ...]:
        """Return the `n` choices of one prompt."""
        return self.choices[prompt_index * self.n : (prompt_index + 1) * self.n]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once whatever n is."""
        return sum(len(prompt.tokens) for prompt in self.prompts)


def derive_seed(run_seed: int, custom_id: str) -> int:
    """Return the seed, below 2**63, of a request that brings none: stable across restarts."""
    digest = hashlib.sha256(f"{run_seed}\n{custom_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") & _SEED_MASK


def check_model(name: object, served: Collection[str]) -> str:
    """Return `name` if it is one under which the model is served.

    Raises:
        InvalidRequest: it is missing, or no string.
        UnknownModel: there is no such model.
    """
    names = ", ".join(map(repr, served))
    if name is None:
        raise InvalidRequest(f"model is missing; there is {names}", param="model")
    text = check_text(name, "model")
    if text not in served:
        raise UnknownModel(f"the model {shown(text)} does not exist; there is {names}")
    return text


def parse_line(line: bytes, line_number: int) -> BatchLine | RefusedLine:
    """Read one line of a batch file, without its line end."""

    def refuse(message: str, custom_id: str | None = None, param: str | None = None) -> RefusedLine:
        return RefusedLine(line_number, custom_id, f"line {line_number}: {message}", param)

    try:
        document = load_json(line)
    except ValueError as error:
        return refuse(str(error))
    if not isinstance(document, dict):
        return refuse(f"a JSON object is expected, not {name_kind(document)}")
    custom_id = document.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return refuse("custom_id must be a string that is not empty", param="custom_id")
    method = document.get("method")
    if method != "POST":
        return refuse(f"method must be 'POST', not {shown(method)}", custom_id, "method")
    url = document.get("url")
    if url not in tuple(Endpoint):
        urls = " or ".join(repr(str(endpoint)) for endpoint in Endpoint)
        return refuse(f"url must be {urls}, not {shown(url)}", custom_id, "url")
    body = document.get("body")
    if not isinstance(body, dict):
        return refuse("body must be a JSON object", custom_id, "body")
    return BatchLine(line_number, custom_id, Endpoint(url), body)


def parse_request(line: BatchLine, model: ModelContext, *, run_seed: int) -> ParsedRequest:
    """Check the body of `line`; without a seed of its own it gets one from its custom_id.

    Raises:
        InvalidRequest: a field is wrong, out of range or not supported; param names it.
    """
    default_seed = derive_seed(run_seed, line.custom_id)
    return parse_body(line.endpoint, line.body, model, default_seed=default_seed)


def parse_body(
    url: Endpoint, body: Mapping[str, Any], model: ModelContext, *, default_seed: int
) -> ParsedRequest:
    """Check the body of a request to `url`.

    Raises:
        InvalidRequest: a field is wrong, out of range or not supported; param names it.
    """
    is_chat = url is Endpoint.CHAT
    refuse_unsupported(body, is_chat=is_chat)
    fields = Fields(body)
    n = fields.integer("n", low=1, high=MAX_CHOICES) or 1
    echo = not is_chat and fields.boolean("echo")
    num_logprobs = parse_num_logprobs(fields, is_chat=is_chat)
    stop = parse_stop(fields, can_read_text=model.tokenizer.has_text)
    sampling = replace(
        parse_sampling(fields, default_seed=default_seed),
        stop_token_ids=_collect_stop_tokens(fields, model),
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_logprobs if echo else None,
    )
    max_tokens = parse_max_tokens(fields, can_be_zero=echo)
    if is_chat:
        prompts: tuple[Prompt, ...] = (
            parse_messages(fields, model.tokenizer, model.num_token_ids),
        )
    else:
        prompts = parse_prompts(fields, model.tokenizer, model.num_token_ids)
        if max_tokens is None:
            max_tokens = Limit(DEFAULT_COMPLETION_TOKENS, None)
    if n * len(prompts) > MAX_SEQUENCES:
        raise InvalidRequest(
            f"{len(prompts)} prompts and n {n} make {n * len(prompts)} choices; at most "
            f"{MAX_SEQUENCES} are allowed in one request. Send several, or lower n",
            param="n",
        )
    lengths = [fit_limit(prompt, max_tokens, model.max_sequence_length) for prompt in prompts]
    min_tokens = parse_min_tokens(fields, lengths)
    return ParsedRequest(
        endpoint=url,
        model=check_text(body["model"], "model") if fields.has("model") else "",
        prompts=prompts,
        n=n,
        choices=_build_choices(lengths, n, replace(sampling, min_tokens=min_tokens)),
        stop=stop,
        echo=echo,
        num_logprobs=num_logprobs,
        return_token_ids=fields.boolean("return_token_ids"),
    )


def _collect_stop_tokens(fields: Fields, model: ModelContext) -> frozenset[int]:
    """Return every token that ends a choice; ignore_eos leaves out the model's own."""
    tokens = parse_stop_token_ids(fields, model.num_token_ids)
    return tokens if fields.boolean("ignore_eos") else tokens | model.stop_token_ids


def _build_choices(
    lengths: list[int], n: int, sampling: SamplingParams
) -> tuple[ChoiceRequest, ...]:
    """Return the choices of all prompts; each draws from noise of its own."""
    return tuple(
        ChoiceRequest(
            index=prompt_index * n + choice,
            prompt_index=prompt_index,
            max_new_tokens=max_new_tokens,
            sampling=replace(sampling, choice=prompt_index * n + choice),
        )
        for prompt_index, max_new_tokens in enumerate(lengths)
        for choice in range(n)
    )


def load_json(line: bytes) -> Any:
    """Return the JSON value of `line`, a line or a whole body.

    Raises:
        ValueError: it is none, or one that nobody means: not-a-number, an integer of hundreds
            of digits, endless nesting; the message says which.
    """
    try:
        return json.loads(
            line.decode("utf-8"), parse_constant=_refuse_constant, parse_int=_read_integer
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError("no JSON that can be read: nested too deeply") from error


def _read_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits; at most {_MAX_DIGITS} are read")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"no JSON: {name} is not a number of JSON")
