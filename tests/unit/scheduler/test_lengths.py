"""Expected outputs follow what a flow did, and are cautious before they know."""

import random

import pytest

from glinthawk.scheduler.lengths import DEFAULT_TOKENS, LearnedLengths

LONG, SHORT = "long", "short"


def observe(lengths: LearnedLengths, flow: str, num_tokens: int, key: int = 0) -> None:
    """Let an output begin and end."""
    lengths.begin(flow, key)
    lengths.end(flow, key, num_tokens)


def test_nothing_known_is_the_default() -> None:
    assert LearnedLengths(300).expect(LONG) == 300
    assert LearnedLengths().expect(LONG) == DEFAULT_TOKENS


def test_each_flow_is_learned_by_its_own_outputs() -> None:
    lengths = LearnedLengths(256)
    for _ in range(200):
        observe(lengths, LONG, 1000)
        observe(lengths, SHORT, 10)
    assert 900 <= lengths.expect(LONG) <= 1000
    assert 10 <= lengths.expect(SHORT) <= 60
    assert lengths.expect(SHORT) < lengths.expect("new") < lengths.expect(LONG)


def test_the_mean_of_the_outputs_is_learned() -> None:
    lengths = LearnedLengths()
    source = random.Random(3)
    for key in range(1000):
        observe(lengths, LONG, source.randint(20, 60), key)
    assert lengths.expect(LONG) == pytest.approx(40, abs=4)


def test_a_few_short_outputs_do_not_outweigh_the_first_guess() -> None:
    lengths = LearnedLengths(256)
    for _ in range(3):
        observe(lengths, SHORT, 1)
    assert lengths.expect(SHORT) > 100


def test_empty_outputs_still_expect_a_token() -> None:
    lengths = LearnedLengths(1)
    for _ in range(100):
        observe(lengths, SHORT, 0)
    assert lengths.expect(SHORT) == 1


def test_short_outputs_that_end_first_do_not_make_it_expect_too_little() -> None:
    """Half of the outputs take 10 tokens, half 1000, all begun together, ended by length."""
    lengths = LearnedLengths()
    for key in range(200):
        lengths.begin(LONG, key)
    for key in range(0, 200, 2):
        lengths.end(LONG, key, 10)
    early = lengths.expect(LONG)
    for key in range(1, 200, 2):
        lengths.end(LONG, key, 1000)
    assert early > DEFAULT_TOKENS * 0.75
    assert lengths.expect(LONG) == pytest.approx(505, abs=15)


def test_one_that_takes_for_ever_does_not_stop_the_learning_nor_fill_the_memory() -> None:
    lengths = LearnedLengths()
    lengths.begin(LONG, 0)
    for key in range(1, 10_000):
        observe(lengths, LONG, 20, key)
    assert lengths.expect(LONG) == pytest.approx(20, abs=3)
    assert lengths.num_open == 1
    assert len(lengths._flows[LONG].outputs) < 1000
    before = lengths.expect(LONG)
    lengths.end(LONG, 0, 100_000)
    assert lengths.num_open == 0
    assert lengths.expect(LONG) > before


def test_all_sequences_of_an_output_count() -> None:
    lengths = LearnedLengths(10)
    for key in range(1000):
        lengths.begin(LONG, key)
        lengths.end(LONG, key, 3 * 40, 3)
    assert lengths.expect(LONG) == pytest.approx(40, abs=1)


def test_outputs_that_failed_say_nothing_and_hold_up_nothing() -> None:
    lengths = LearnedLengths(100)
    lengths.begin(LONG, 1)
    lengths.begin(LONG, 2)
    lengths.end(LONG, 2, 10)
    assert lengths.expect(LONG) == 100
    lengths.forget(LONG, 1)
    assert 80 <= lengths.expect(LONG) < 90


def test_an_output_may_begin_again() -> None:
    lengths = LearnedLengths(100)
    for key in (1, 2, 3):
        lengths.begin(LONG, key)
    lengths.forget(LONG, 2)
    lengths.begin(LONG, 2)
    for key in (3, 2):
        lengths.end(LONG, key, 10)
    assert lengths.expect(LONG) == 100
    lengths.end(LONG, 1, 10)
    assert lengths.num_open == 0
    assert lengths.expect(LONG) < 80


def test_a_flow_that_changes_is_learned_anew() -> None:
    lengths = LearnedLengths(256)
    for _ in range(1000):
        observe(lengths, LONG, 1000)
    for _ in range(500):
        observe(lengths, LONG, 100)
    assert lengths.expect(LONG) < 130


def test_a_flow_that_is_over_leaves_only_what_all_had() -> None:
    lengths = LearnedLengths(256)
    for key in range(100):
        observe(lengths, LONG, 1000, key)
    lengths.begin(LONG, 100)
    lengths.leave(LONG)
    lengths.leave(LONG)
    assert (lengths.num_flows, lengths.num_open) == (0, 0)
    assert 500 < lengths.expect(LONG) < 1000


def test_flows_that_are_gone_are_forgotten_but_none_that_is_open() -> None:
    lengths = LearnedLengths(256)
    random_ = random.Random(1)
    lengths.begin(LONG, 1)
    for number in range(5000):
        observe(lengths, f"job{number}", random_.randint(1, 9))
    assert lengths.num_flows <= 1024
    assert lengths.num_open == 1
    assert lengths.expect("job4999") < 30
