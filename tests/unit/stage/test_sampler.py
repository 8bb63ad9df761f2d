from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SequenceStart
from glinthawk.errors import InvariantBroken
from glinthawk.stage.noise import gumbel, noise_keys, token_counters
from glinthawk.stage.sampler import Sampler, prompt_logprobs

VOCAB = 120
DRAWS = 6000
GREEDY = SamplingParams(temperature=0.0)


def make_sampler(*samplings: SamplingParams, tokens: tuple[int, ...] = (1, 2)) -> Sampler:
    """Return a sampler with a sequence 0, 1, ... for each of `samplings`."""
    sampler = Sampler(VOCAB, torch.device("cpu"))
    for number, sampling in enumerate(samplings):
        sampler.register(SequenceStart(SequenceId(number), tokens, len(tokens), sampling))
    return sampler


def make_logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def expected_distribution(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """The filters as their definitions say, one token after another, for one row."""
    scores = logits.double() / sampling.temperature
    probabilities = scores.softmax(0)
    scores[probabilities < sampling.min_p * probabilities.max()] = -torch.inf
    if sampling.top_k is not None:
        scores[scores < scores.sort(descending=True).values[sampling.top_k - 1]] = -torch.inf
    if sampling.top_p < 1:
        total = 0.0
        probabilities = scores.softmax(0)
        for token in scores.argsort(descending=True).tolist():
            if total >= sampling.top_p:
                scores[token] = -torch.inf
            total += float(probabilities[token])
    return scores.softmax(0)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.7, choice=3),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=1.5, top_p=0.95),
        SamplingParams(top_k=7),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=20, top_p=0.7),
        SamplingParams(top_p=0.9, min_p=0.05),
        SamplingParams(temperature=0.8, top_k=15, top_p=0.9, min_p=0.02),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling: SamplingParams) -> None:
    sampler = make_sampler(replace(sampling, seed=11))
    logits = make_logits()
    sampled = sampler.sample([0] * DRAWS, range(2, 2 + DRAWS), logits.expand(DRAWS, -1))
    counts = np.bincount([item.token for item in sampled], minlength=VOCAB)
    expected = expected_distribution(logits[0], sampling).numpy() * DRAWS
    assert not counts[expected == 0].any()
    # The rare ones together, as the test wants at least five of each kind.
    is_rare = expected < 5
    observed = np.append(counts[~is_rare], counts[is_rare].sum())
    wanted = np.append(expected[~is_rare], expected[is_rare].sum())
    is_there = wanted > 0
    assert stats.chisquare(observed[is_there], wanted[is_there]).pvalue > 1e-3


def test_a_draw_is_the_best_score_with_noise_of_seed_choice_position_and_token() -> None:
    samplings = [SamplingParams(temperature=0.7, seed=-5 + n, choice=n) for n in range(9)]
    sampler = make_sampler(*samplings)
    logits = make_logits(9)
    sampled = sampler.sample(range(9), [2] * 9, logits)
    keys = noise_keys(
        np.array([item.seed % 2**64 for item in samplings], dtype=np.uint64),
        np.array([item.choice for item in samplings], dtype=np.uint64),
        np.full(9, 2, dtype=np.uint64),
    )
    noise = gumbel(torch.from_numpy(keys), token_counters(torch.arange(VOCAB)))
    assert [item.token for item in sampled] == (logits / 0.7 + noise).argmax(1).tolist()


def every_kind() -> list[SamplingParams]:
    stops = frozenset({4, 5, 6})
    return [
        GREEDY,
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=0.5, top_p=0.9),
        SamplingParams(seed=3, top_k=5, num_logprobs=2),
        SamplingParams(seed=4, min_p=0.2),
        SamplingParams(seed=5, repetition_penalty=1.3, presence_penalty=0.2),
        SamplingParams(temperature=0, frequency_penalty=0.4, num_logprobs=0),
        SamplingParams(seed=6, min_tokens=9, stop_token_ids=stops),
        SamplingParams(seed=7, top_k=9, top_p=0.8, min_p=0.01, repetition_penalty=0.9),
    ]


def test_a_row_is_sampled_alike_alone_and_in_any_crowd() -> None:
    samplings = every_kind()
    numbers = list(range(len(samplings)))
    logits = make_logits(len(samplings))
    crowd = make_sampler(*samplings).sample(numbers, [2] * len(numbers), logits)
    for number in numbers:
        alone = make_sampler(*samplings).sample([number], [2], logits[number : number + 1])
        assert alone[0] == crowd[number]
    backwards = make_sampler(*samplings).sample(numbers[::-1], [2] * len(numbers), logits.flip(0))
    assert backwards[::-1] == crowd


def test_logits_are_left_as_they_were() -> None:
    samplings = every_kind()
    logits = make_logits(len(samplings))
    before = logits.clone()
    make_sampler(*samplings).sample(range(len(samplings)), [2] * len(samplings), logits)
    assert torch.equal(logits, before)


def test_choices_of_one_request_differ() -> None:
    sampler = make_sampler(*[SamplingParams(seed=1, choice=n) for n in range(50)])
    flat = torch.zeros(50, VOCAB)
    assert len({item.token for item in sampler.sample(range(50), [2] * 50, flat)}) > 25


def test_temperatures_below_a_hundred_thousandth_are_greedy_and_equals_go_to_the_lowest() -> None:
    sampler = make_sampler(GREEDY, SamplingParams(temperature=9e-6))
    logits = torch.zeros(2, VOCAB)
    logits[:, [17, 30, 90]] = 3.0
    assert [item.token for item in sampler.sample([0, 1], [2, 2], logits)] == [17, 17]


def test_equals_at_the_border_of_top_k_and_top_p_stay_together() -> None:
    samplings = (SamplingParams(top_k=2), SamplingParams(top_p=0.3))
    logits = torch.full((1, VOCAB), -20.0)
    logits[0, [3, 40, 41, 42]] = torch.tensor([1.0, 0.5, 0.5, 0.5])
    for sampling in samplings:
        sampler = make_sampler(sampling)
        sampled = sampler.sample([0] * 500, range(2, 502), logits.expand(500, -1))
        tokens = {item.token for item in sampled}
        assert tokens == ({3, 40, 41, 42} if sampling.top_k else {3}), sampling
    wider = make_sampler(SamplingParams(top_p=0.5))
    sampled = wider.sample([0] * 500, range(2, 502), logits.expand(500, -1))
    assert {item.token for item in sampled} == {3, 40, 41, 42}


def test_filters_hold_where_logits_are_flat_or_a_token_takes_all() -> None:
    for sampling in (SamplingParams(top_p=0.001), SamplingParams(top_p=0.5, top_k=1)):
        sampler = make_sampler(sampling)
        peak = torch.zeros(1, VOCAB)
        peak[0, 8] = 90.0
        assert sampler.sample([0], [2], peak)[0].token == 8
    sampler = make_sampler(SamplingParams(top_p=0.999999, top_k=10**9))
    tokens = sampler.sample([0] * 3000, range(2, 3002), torch.zeros(1, VOCAB).expand(3000, -1))
    assert len({item.token for item in tokens}) == VOCAB


def test_penalties_follow_their_formulas_over_prompt_and_output() -> None:
    sampling = SamplingParams(
        temperature=0, repetition_penalty=1.5, frequency_penalty=0.3, presence_penalty=0.7
    )
    prompt = [7, 8, 8, 100]
    sampler = Sampler(VOCAB, torch.device("cpu"))
    sampler.register(SequenceStart(SequenceId(0), (*prompt, 9, 9, 8), 4, sampling))
    output = [9, 9, 8]
    for step in range(150):
        logits = make_logits(seed=step)
        expected = logits[0].clone()
        for token in set(prompt) | set(output):
            value = expected[token]
            expected[token] = value / 1.5 if value > 0 else value * 1.5
        for token in set(output):
            expected[token] -= 0.3 * output.count(token) + 0.7
        position = len(prompt) + len(output)
        chosen = sampler.sample([0], [position], logits)[0].token
        assert chosen == int(expected.argmax())
        output.append(chosen)


def test_stop_tokens_are_impossible_until_min_tokens_are_there() -> None:
    sampling = SamplingParams(temperature=0, min_tokens=3, stop_token_ids=frozenset({5, 10**6}))
    sampler = make_sampler(sampling, GREEDY)
    logits = torch.zeros(2, VOCAB)
    logits[:, 5], logits[:, 6] = 9.0, 8.0
    chosen = [
        [item.token for item in sampler.sample([0, 1], [2 + n, 2 + n], logits)] for n in range(5)
    ]
    assert chosen == [[6, 5], [6, 5], [6, 5], [5, 5], [5, 5]]


def test_a_replayed_step_gives_the_same_token_and_counts_it_once() -> None:
    sampling = SamplingParams(temperature=0, presence_penalty=5.0, frequency_penalty=1.0)
    sampler = make_sampler(sampling)
    logits = make_logits()
    first = [sampler.sample([0], [2 + n], logits)[0].token for n in range(4)]
    assert len(set(first)) == 4
    assert [sampler.sample([0], [2 + n], logits)[0].token for n in (2, 2, 3)] == [
        first[2],
        first[2],
        first[3],
    ]
    rebuilt = Sampler(VOCAB, torch.device("cpu"))
    rebuilt.register(SequenceStart(SequenceId(0), (1, 2, *first), 2, sampling))
    following = rebuilt.sample([0], [6], logits)[0].token
    assert following == sampler.sample([0], [6], logits)[0].token


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_logit_that_is_not_finite_is_an_error_of_its_row_only(value: float) -> None:
    samplings = every_kind()
    logits = make_logits(len(samplings))
    expected = make_sampler(*samplings).sample(range(9), [2] * 9, logits)
    for row in (0, 3, 6):
        logits[row, 77] = value
    sampled = make_sampler(*samplings).sample(range(9), [2] * 9, logits)
    for row in range(9):
        if row in (0, 3, 6):
            assert "not finite" in str(sampled[row].error)
            assert sampled[row].logprobs is None
        else:
            assert sampled[row] == expected[row]


def test_logprobs_are_of_the_raw_distribution() -> None:
    sampling = SamplingParams(temperature=0.3, top_k=3, repetition_penalty=2.0, num_logprobs=4)
    sampler = make_sampler(sampling, GREEDY, replace(GREEDY, num_logprobs=0))
    logits = make_logits(3)
    sampled = sampler.sample([0, 1, 2], [2, 2, 2], logits)
    raw = logits.log_softmax(1)
    first = sampled[0].logprobs
    assert first is not None
    assert first.token == sampled[0].token
    assert first.logprob == pytest.approx(float(raw[0, first.token]), abs=1e-5)
    assert first.rank == int((raw[0] >= raw[0, first.token]).sum())
    assert [token for token, _ in first.top] == raw[0].topk(4).indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(
        raw[0].topk(4).values.tolist(), abs=1e-5
    )
    assert sampled[1].logprobs is None
    only = sampled[2].logprobs
    assert only is not None
    assert (only.rank, only.top) == (1, ())


def test_prompt_logprobs_score_given_tokens() -> None:
    logits = make_logits(5)
    targets = [3, 1, 4, 1, 5]
    scored = prompt_logprobs(logits, targets, 2)
    raw = logits.log_softmax(1)
    assert [item.token for item in scored] == targets
    for row, item in enumerate(scored):
        assert item.logprob == pytest.approx(float(raw[row, item.token]), abs=1e-5)
        assert len(item.top) == 2
    assert prompt_logprobs(logits[:0], [], 2) == []


def test_a_sequence_is_known_from_registration_until_it_is_forgotten() -> None:
    sampler = make_sampler(*[SamplingParams(presence_penalty=1.0) for _ in range(200)])
    assert sampler.start_of(SequenceId(150)).prompt_tokens == 2
    sampler.forget([SequenceId(150), SequenceId(10**6)])
    unknown: list[Callable[[], object]] = [
        lambda: sampler.start_of(SequenceId(150)),
        lambda: sampler.sample([150], [2], make_logits()),
    ]
    for call in unknown:
        with pytest.raises(InvariantBroken, match="sequence 150 is not registered"):
            call()
    with pytest.raises(InvariantBroken, match="position 5 of a sequence that has 2 tokens"):
        sampler.sample([0], [5], make_logits())
    assert sampler.sample([], [], make_logits(0)) == []


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(top_p=0.97),
        SamplingParams(min_p=0.05),
        SamplingParams(top_p=0.9, min_p=0.01),
        SamplingParams(top_p=0.2),
    ],
    ids=str,
)
def test_a_large_vocabulary_is_filtered_as_the_definition_says(sampling: SamplingParams) -> None:
    vocab, draws = 5000, 2000
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(3)) * 1.5
    sampler = Sampler(vocab, torch.device("cpu"))
    sampler.register(SequenceStart(SequenceId(0), (1,), 1, sampling))
    sampled = sampler.sample([0] * draws, range(1, 1 + draws), logits.expand(draws, -1))
    probabilities = expected_distribution(logits[0], sampling)
    keys = noise_keys(
        *(np.full(draws, 0, dtype=np.uint64),) * 2, np.arange(1, 1 + draws, dtype=np.uint64)
    )
    noise = gumbel(torch.from_numpy(keys), token_counters(torch.arange(vocab)))
    assert [item.token for item in sampled] == (probabilities.log() + noise).argmax(1).tolist()
