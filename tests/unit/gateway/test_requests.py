import dataclasses
import json
from typing import Any

import pytest

from glinthawk.core.sampling import SamplingParams
from glinthawk.errors import InvalidRequest
from glinthawk.gateway.requests import (
    MAX_SEQUENCES,
    BatchLine,
    Endpoint,
    ModelContext,
    ParsedRequest,
    RefusedLine,
    derive_seed,
    parse_body,
    parse_line,
    parse_request,
)
from glinthawk.models.tokenizer import TokenIdsOnly
from unit.gateway.factories import END, START, make_model

MESSAGES = [{"role": "user", "content": "hi"}]


def completions(max_sequence_length: int = 100, **body: Any) -> ParsedRequest:
    body = {"prompt": "hello"} | body
    return parse_body(Endpoint.COMPLETIONS, body, make_model(max_sequence_length), default_seed=5)


def chat(max_sequence_length: int = 100, **body: Any) -> ParsedRequest:
    body = {"messages": MESSAGES} | body
    return parse_body(Endpoint.CHAT, body, make_model(max_sequence_length), default_seed=5)


def sampling_of(**body: Any) -> SamplingParams:
    return completions(**body).choices[0].sampling


def refusal(parse: Any, **body: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**body)
    return caught.value


def line_of(**fields: Any) -> bytes:
    document = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "x"},
    } | fields
    return json.dumps({name: value for name, value in document.items() if value != ...}).encode()


def test_a_well_formed_line_is_read() -> None:
    line = parse_line(line_of(), 3)
    assert line == BatchLine(3, "a", Endpoint.COMPLETIONS, {"prompt": "x"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "no JSON"),
        (b"nonsense", "no JSON"),
        (b"\xff{}", "UTF-8 at byte 0"),
        (b"[1]", "object is expected, not an array"),
        (b"null", "object is expected"),
        (b'{"custom_id": NaN}', "NaN"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 7"),
        (line_of(custom_id=...), "custom_id"),
        (line_of(custom_id=None), "custom_id"),
        (line_of(custom_id=12), "custom_id"),
        (line_of(custom_id=""), "custom_id"),
    ],
)
def test_a_line_without_a_usable_custom_id_is_refused_by_its_number(
    line: bytes, words: str
) -> None:
    refused = parse_line(line, 7)
    assert isinstance(refused, RefusedLine)
    assert refused.custom_id is None
    assert refused.message.startswith("line 7: ")
    assert words in refused.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"method": "GET"}, "method"),
        ({"method": ...}, "method"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"url": ["/v1/completions"]}, "url"),
        ({"url": ...}, "url"),
        ({"body": "x"}, "body"),
        ({"body": ...}, "body"),
    ],
)
def test_a_wrong_envelope_is_refused_under_its_custom_id(
    fields: dict[str, Any], param: str
) -> None:
    refused = parse_line(line_of(**fields), 7)
    assert isinstance(refused, RefusedLine)
    assert (refused.custom_id, refused.param) == ("a", param)


def test_defaults_of_completions_are_those_of_openai() -> None:
    request = completions(model="some-model")
    assert request.model == "some-model"
    assert request.prompts[0].tokens == tuple(b"hello")
    assert request.prompts[0].text == "hello"
    (choice,) = request.choices
    assert choice.max_new_tokens == 16
    assert choice.sampling == SamplingParams(stop_token_ids=frozenset({END}), seed=5)
    assert (request.n, request.stop, request.echo, request.num_logprobs) == (1, (), False, None)


def test_chat_without_a_limit_gets_the_rest_of_the_context() -> None:
    request = chat()
    assert request.prompts[0].tokens == (START, *b"user:hi")
    assert request.choices[0].max_new_tokens == 100 - 8


def test_default_limit_of_completions_is_cut_to_the_context() -> None:
    assert completions(max_sequence_length=12).choices[0].max_new_tokens == 7


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_explicit_limit_must_fit_whole(name: str) -> None:
    assert completions(max_sequence_length=12, **{name: 7}).choices[0].max_new_tokens == 7
    error = refusal(completions, max_sequence_length=12, **{name: 8})
    assert error.param == name
    for words in ("5 tokens", f"{name} 8", "13 tokens", "12"):
        assert words in str(error)


@pytest.mark.parametrize("parse", [chat, completions])
def test_a_prompt_that_fills_the_context_is_refused_with_both_sizes(parse: Any) -> None:
    error = refusal(parse, max_sequence_length=5)
    assert "leaves no room" in str(error)
    assert "5 tokens" in str(error)


def test_both_names_of_the_limit_must_agree() -> None:
    assert chat(max_tokens=3, max_completion_tokens=3).choices[0].max_new_tokens == 3
    assert refusal(chat, max_tokens=3, max_completion_tokens=4).param == "max_tokens"


def test_zero_tokens_need_echo() -> None:
    assert completions(max_tokens=0, echo=True).choices[0].max_new_tokens == 0
    assert completions(max_tokens=0, echo=True, max_sequence_length=5)
    assert refusal(completions, max_tokens=0).param == "max_tokens"
    assert refusal(chat, max_tokens=0).param == "max_tokens"


def test_every_sampling_field_arrives() -> None:
    sampling = sampling_of(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, presence_penalty=-2, seed=9,
        frequency_penalty=2, repetition_penalty=1.5, min_tokens=3, stop_token_ids=[1, 2],
        logprobs=4,
    )  # fmt: skip
    assert sampling == SamplingParams(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, presence_penalty=-2.0, seed=9,
        frequency_penalty=2.0, repetition_penalty=1.5, min_tokens=3, num_logprobs=4,
        stop_token_ids=frozenset({1, 2, END}),
    )  # fmt: skip


OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", True), ("temperature", "1"),
    ("temperature", float("inf")), ("temperature", float("nan")),
    ("top_p", 0), ("top_p", 1.01), ("top_p", -1),
    ("top_k", -2), ("top_k", 1.0), ("top_k", True), ("top_k", 1 << 31),
    ("min_p", -0.1), ("min_p", 1.1),
    ("presence_penalty", 2.1), ("presence_penalty", -2.1), ("frequency_penalty", 3),
    ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", 10**400),
    ("repetition_penalty", float("inf")),
    ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", "3"), ("max_tokens", True),
    ("max_tokens", 10**30),
    ("min_tokens", -1), ("min_tokens", 17),
    ("n", 0), ("n", 129), ("n", 1.0), ("n", True), ("n", []),
    ("seed", 1 << 63), ("seed", -(1 << 63) - 1), ("seed", 1.5), ("seed", True),
    ("stop", ""), ("stop", [""]), ("stop", [1]), ("stop", {}), ("stop", ["x"] * 17),
    ("stop", "\ud800"),
    ("stop_token_ids", 3), ("stop_token_ids", [300]), ("stop_token_ids", [-1]),
    ("stop_token_ids", [True]), ("stop_token_ids", [1.0]), ("stop_token_ids", [0] * 257),
    ("logprobs", 21), ("logprobs", -1), ("logprobs", True),
    ("ignore_eos", 1), ("echo", "yes"), ("return_token_ids", 0), ("model", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(completions, **{name: value})
    assert error.param == name
    assert name in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "max_tokens", "max_completion_tokens", "min_tokens", "n", "seed",
        "stop", "stop_token_ids", "logprobs", "ignore_eos", "echo", "return_token_ids",
    ],
)  # fmt: skip
def test_null_is_the_default(name: str) -> None:
    assert completions(**{name: None}) == completions()


def test_switched_off_values_mean_off() -> None:
    assert sampling_of(top_k=-1).top_k is None
    assert sampling_of(top_k=0).top_k is None
    assert sampling_of(temperature=0).temperature == 0.0
    assert sampling_of(temperature=1e-9).temperature == 0.0


def test_seeds_are_unsigned_64_bits_and_zero_is_a_seed() -> None:
    assert sampling_of(seed=0).seed == 0
    assert sampling_of(seed=-1).seed == (1 << 64) - 1
    assert sampling_of(seed=-(1 << 63)).seed == 1 << 63


def test_derived_seeds_are_stable_and_differ() -> None:
    # Fixed for ever: a run that goes on after an update must draw the same tokens.
    assert derive_seed(0, "request-1") == 126_811_690_870_546_340
    seeds = {derive_seed(run, name) for run in range(10) for name in ("a", "b", "c")}
    assert len(seeds) == 30
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_a_line_without_a_seed_gets_one_from_run_and_custom_id() -> None:
    line = BatchLine(1, "a", Endpoint.COMPLETIONS, {"prompt": "x"})
    seed = parse_request(line, make_model(), run_seed=3).choices[0].sampling.seed
    assert seed == derive_seed(3, "a")
    seeded = dataclasses.replace(line, body={"prompt": "x", "seed": 8})
    assert parse_request(seeded, make_model(), run_seed=3).choices[0].sampling.seed == 8


def test_choices_are_ordered_prompt_by_prompt_and_draw_different_noise() -> None:
    request = completions(prompt=["a", "bb"], n=2)
    assert [choice.index for choice in request.choices] == [0, 1, 2, 3]
    assert [choice.prompt_index for choice in request.choices] == [0, 0, 1, 1]
    assert [choice.sampling.choice for choice in request.choices] == [0, 1, 2, 3]
    assert request.num_prompt_tokens == 3


def test_prompts_times_n_are_bounded_by_the_choices_that_the_engine_takes_in_one_piece() -> None:
    most = completions(prompt=["a"] * (MAX_SEQUENCES // 128), n=128)
    assert len(most.choices) == MAX_SEQUENCES
    assert [choice.prompt_index for choice in most.choices_of(7)] == [7] * 128
    error = refusal(completions, prompt=["a"] * (MAX_SEQUENCES // 128 + 1), n=128)
    assert error.param == "n"
    assert f"make {MAX_SEQUENCES + 128} choices" in str(error)


def test_ignore_eos_leaves_only_the_stop_tokens_of_the_body() -> None:
    assert sampling_of(ignore_eos=True).stop_token_ids == frozenset()
    assert sampling_of(ignore_eos=True, stop_token_ids=[4]).stop_token_ids == frozenset({4})


def test_stop_is_a_string_or_a_list() -> None:
    assert completions(stop="end").stop == ("end",)
    assert completions(stop=["a", "b"]).stop == ("a", "b")
    assert completions(stop=[]).stop == ()


def test_logprobs_of_completions_count_alternatives() -> None:
    assert completions(logprobs=0).num_logprobs == 0
    assert sampling_of(logprobs=20).num_logprobs == 20
    assert sampling_of(logprobs=2).num_prompt_logprobs is None
    assert sampling_of(logprobs=2, echo=True).num_prompt_logprobs == 2
    assert sampling_of(echo=True).num_prompt_logprobs is None


def test_logprobs_of_chat_are_a_switch_and_a_number() -> None:
    assert chat(logprobs=True).num_logprobs == 0
    assert chat(logprobs=True, top_logprobs=5).choices[0].sampling.num_logprobs == 5
    assert chat(logprobs=False).num_logprobs is None
    assert chat(logprobs=False, top_logprobs=0).num_logprobs is None
    assert refusal(chat, logprobs=3).param == "logprobs"
    assert refusal(chat, top_logprobs=3).param == "top_logprobs"
    assert refusal(chat, logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert refusal(completions, top_logprobs=3).param == "top_logprobs"


def test_min_tokens_may_reach_the_limit_but_not_pass_it() -> None:
    assert sampling_of(max_tokens=4, min_tokens=4).min_tokens == 4
    assert refusal(completions, max_tokens=4, min_tokens=5).param == "min_tokens"
    assert refusal(completions, max_sequence_length=8, min_tokens=4).param == "min_tokens"


def test_the_models_vocabulary_counts_where_it_is_not_the_tokenizers() -> None:
    model = dataclasses.replace(make_model(), vocab_size=400)
    body = {"prompt": [399], "stop_token_ids": [399]}
    request = parse_body(Endpoint.COMPLETIONS, body, model, default_seed=0)
    assert request.prompts[0].tokens == (399,)
    with pytest.raises(InvalidRequest, match="0 to 399"):
        parse_body(Endpoint.COMPLETIONS, {"prompt": [400]}, model, default_seed=0)


def test_a_model_without_text_takes_token_ids_only() -> None:
    model = ModelContext(TokenIdsOnly(), 100, frozenset(), vocab_size=50)
    body: dict[str, Any] = {"prompt": [49], "max_tokens": 2}
    assert parse_body(Endpoint.COMPLETIONS, body, model, default_seed=0).prompts[0].tokens == (49,)
    with pytest.raises(InvalidRequest, match="stop needs text"):
        parse_body(Endpoint.COMPLETIONS, body | {"stop": "x"}, model, default_seed=0)
    with pytest.raises(InvalidRequest, match="token ids"):
        parse_body(Endpoint.COMPLETIONS, {"prompt": "x"}, model, default_seed=0)
    with pytest.raises(InvalidRequest, match="no chat template"):
        parse_body(Endpoint.CHAT, {"messages": MESSAGES}, model, default_seed=0)


def test_an_endless_integer_is_refused_in_words_of_our_own() -> None:
    line = b'{"custom_id": "a", "n": ' + b"1" * 5000 + b"}"
    refused = parse_line(line, 3)
    assert isinstance(refused, RefusedLine)
    assert "5000 digits" in refused.message
    assert "sys." not in refused.message


def test_seeds_two_to_the_63_apart_are_two_seeds() -> None:
    seeds = [-1, 2**63 - 1, -(2**63), 0]
    parsed = [
        parse_body(
            Endpoint.COMPLETIONS, {"prompt": "a", "seed": seed}, make_model(), default_seed=5
        )
        for seed in seeds
    ]
    drawn = {request.choices[0].sampling.seed for request in parsed}
    assert len(drawn) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in drawn)
