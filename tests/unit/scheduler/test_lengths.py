"""Expected outputs follow what a flow did, and are cautious before they know."""

import random

from glinthawk.scheduler import Flow
from glinthawk.scheduler.lengths import LearnedLengths

LONG, SHORT = Flow("long"), Flow("short")


def test_nothing_known_is_the_default() -> None:
    assert LearnedLengths(256).expect(LONG) == 256


def test_each_flow_is_learned_by_its_own_outputs() -> None:
    lengths = LearnedLengths(256)
    for _ in range(200):
        lengths.observe(LONG, 1000)
        lengths.observe(SHORT, 10)
    assert 900 <= lengths.expect(LONG) <= 1000
    assert 10 <= lengths.expect(SHORT) <= 60
    assert lengths.expect(SHORT) < lengths.expect(Flow("new")) < lengths.expect(LONG)


def test_a_few_short_outputs_do_not_outweigh_the_first_guess() -> None:
    lengths = LearnedLengths(256)
    for _ in range(3):
        lengths.observe(SHORT, 1)
    assert lengths.expect(SHORT) > 100


def test_a_flow_that_changes_is_learned_anew() -> None:
    lengths = LearnedLengths(256)
    for _ in range(1000):
        lengths.observe(LONG, 1000)
    for _ in range(500):
        lengths.observe(LONG, 100)
    assert lengths.expect(LONG) < 130


def test_flows_that_are_gone_are_forgotten() -> None:
    lengths = LearnedLengths(256)
    random_ = random.Random(1)
    for number in range(5000):
        lengths.observe(Flow(f"job{number}"), random_.randint(1, 9))
    assert len(lengths._flows) <= 1024
    assert lengths.expect(Flow("job4999")) < 30
