import random

import pytest

from glinthawk.gateway.jobs.lengths import PRIOR_TOKENS, LengthEstimator


def test_the_prior_holds_until_answers_come() -> None:
    estimator = LengthEstimator()
    estimator.begin(1)
    assert estimator.expected_new_tokens(10_000) == PRIOR_TOKENS
    assert estimator.expected_new_tokens(16) == 16


def test_the_mean_of_the_answers_is_learned() -> None:
    estimator = LengthEstimator()
    source = random.Random(3)
    for key in range(300):
        estimator.begin(key)
        estimator.end(key, source.randint(20, 60), 1)
    assert estimator.expected_new_tokens(1000) == pytest.approx(46, abs=4)


def test_answers_that_are_empty_still_expect_a_token() -> None:
    estimator = LengthEstimator(prior_tokens=1)
    for key in range(100):
        estimator.begin(key)
        estimator.end(key, 0, 1)
    assert estimator.expected_new_tokens(1000) == 1


def test_short_answers_that_end_first_do_not_make_it_expect_too_little() -> None:
    """Half of the lines take 10 tokens, half 1000, all begun together, ended by length."""
    estimator = LengthEstimator()
    for key in range(200):
        estimator.begin(key)
    for key in range(0, 200, 2):
        estimator.end(key, 10, 1)
    early = estimator.expected_new_tokens(10_000)
    for key in range(1, 200, 2):
        estimator.end(key, 1000, 1)
    assert early > PRIOR_TOKENS * 0.8
    assert estimator.expected_new_tokens(10_000) == pytest.approx(505, abs=15)


def test_all_sequences_of_a_line_count() -> None:
    estimator = LengthEstimator(prior_tokens=10)
    for key in range(1000):
        estimator.begin(key)
        estimator.end(key, 3 * 40, 3)
    assert estimator.expected_new_tokens(1000) == pytest.approx(40, abs=1)


def test_failed_lines_say_nothing_and_hold_up_nothing() -> None:
    estimator = LengthEstimator(prior_tokens=100)
    for key in (1, 2):
        estimator.begin(key)
    estimator.end(2, 28, 1)
    assert estimator.expected_new_tokens(1000) == 100
    estimator.forget(1)
    assert estimator.expected_new_tokens(1000) == 92


def test_a_job_that_changes_on_its_way_is_followed() -> None:
    estimator = LengthEstimator()
    for key in range(20_000):
        estimator.begin(key)
        estimator.end(key, 10 if key < 15_000 else 500, 1)
    assert estimator.expected_new_tokens(1000) > 480
