"""Fair shares, by simulation: an engine that completes what was begun, in a bounded window."""

import random
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from glinthawk.gateway.jobs.shares import FairShares, weigh

Cost = Callable[[random.Random], int]


class Simulation:
    """Jobs with endless lines. estimate: what a line is taken to cost before its true length is
    known, as a share of that."""

    def __init__(
        self, jobs: dict[str, tuple[float, Cost]], *, window: int = 64, estimate: float = 1.0
    ) -> None:
        self.random = random.Random(1)
        self.jobs = dict(jobs)
        self.shares = FairShares()
        self.open: deque[tuple[str, int, int]] = deque()
        self.served = dict.fromkeys(jobs, 0)
        self.window = window
        self.estimate = estimate
        for name, (weight, _) in jobs.items():
            self.shares.join(name, weight)

    def run(self, num_lines: int, idle: frozenset[str] = frozenset()) -> list[str]:
        begun = []
        for _ in range(num_lines):
            name = choose(self.shares, self.jobs.keys() - idle, idle)
            assert name is not None
            begun.append(name)
            cost = self.jobs[name][1](self.random)
            guess = max(1, int(cost * self.estimate))
            self.shares.charge(name, guess)
            self.open.append((name, cost, guess))
            if len(self.open) > self.window:
                self.end(self.random.randrange(len(self.open)))
        return begun

    def end(self, place: int) -> None:
        self.open.rotate(-place)
        name, cost, guess = self.open.popleft()
        self.served[name] += cost
        self.shares.charge(name, cost - guess)

    def share(self, name: str) -> float:
        return self.served[name] / sum(self.served.values())


def choose(shares: FairShares, backlogged: Iterable[str], idle: Iterable[str] = ()) -> str | None:
    for name in idle:
        shares.set_backlogged(name, False)
    for name in backlogged:
        shares.set_backlogged(name, True)
    return shares.choose()


def between(low: int, high: int) -> Cost:
    return lambda source: source.randint(low, high)


@pytest.mark.parametrize("estimate", [1.0, 0.2, 3.0])
def test_shares_of_tokens_follow_the_weights_whatever_a_line_costs(estimate: float) -> None:
    simulation = Simulation(
        {
            "short": (1.0, between(1, 20)),
            "long": (2.0, between(500, 4000)),
            "mixed": (4.0, between(1, 1000)),
        },
        estimate=estimate,
    )
    simulation.run(60_000)
    for name, weight in (("short", 1), ("long", 2), ("mixed", 4)):
        assert simulation.share(name) == pytest.approx(weight / 7, rel=0.05)


def test_no_job_starves_beside_one_of_the_highest_priority() -> None:
    simulation = Simulation(
        {"low": (weigh(-8), between(10, 10)), "high": (weigh(8), between(10, 10))}
    )
    begun = simulation.run(400_000)
    places = [place for place, name in enumerate(begun) if name == "low"]
    waits = [after - before for before, after in pairwise(places)]
    assert len(places) > 4
    assert max(waits) <= weigh(8) / weigh(-8) + 1


def test_a_new_job_gets_its_share_at_once_and_no_more() -> None:
    simulation = Simulation({"old": (1.0, between(100, 100))})
    simulation.run(10_000)
    simulation.jobs["new"] = (1.0, between(100, 100))
    simulation.shares.join("new", 1.0)
    simulation.served["new"] = 0
    begun = simulation.run(1000)
    assert begun.count("new") == pytest.approx(500, abs=2)
    assert begun[:10].count("new") == pytest.approx(5, abs=1)


def test_an_idle_job_saves_nothing_up() -> None:
    simulation = Simulation({"busy": (1.0, between(10, 10)), "idle": (1.0, between(10, 10))})
    simulation.run(1000, idle=frozenset({"idle"}))
    begun = simulation.run(100)
    assert begun.count("idle") == pytest.approx(50, abs=2)


def test_tokens_that_were_not_needed_are_given_back() -> None:
    shares = FairShares()
    for name in ("a", "b"):
        shares.join(name, 1.0)
    shares.charge("a", 1000)
    shares.charge("b", 100)
    assert choose(shares, {"a", "b"}) == "b"
    shares.charge("a", -990)
    assert choose(shares, {"a", "b"}) == "a"


def test_nothing_is_chosen_where_nothing_waits_and_who_left_is_forgotten() -> None:
    shares = FairShares()
    shares.join("a", 1.0)
    assert shares.choose() is None
    shares.leave("a")
    shares.leave("a")
    shares.charge("a", 5)
    shares.join("b", 1.0)
    assert choose(shares, {"b"}) == "b"


def test_who_has_nothing_to_send_any_more_is_not_chosen() -> None:
    shares = FairShares()
    for name in ("a", "b"):
        shares.join(name, 1.0)
        shares.set_backlogged(name, True)
    assert shares.choose() == "a"
    shares.set_backlogged("a", False)
    assert shares.choose() == "b"
    shares.leave("b")
    assert shares.choose() is None
    shares.set_backlogged("a", True)
    assert shares.choose() == "a"


def test_a_choice_takes_no_longer_for_many_flows_and_keeps_no_trace_of_each() -> None:
    """Against the plain rule: the lowest clock of those with something to send, then the name."""
    source = random.Random(3)
    shares, clocks = FairShares(), {}
    names = [f"flow-{number}" for number in range(200)]
    for name in names:
        shares.join(name, 1.0)
        shares.set_backlogged(name, True)
        clocks[name] = 0.0
    for _ in range(20_000):
        chosen = shares.choose()
        assert chosen == min(names, key=lambda name: (clocks[name], name))
        for name, tokens in ((chosen, source.randint(1, 50)), (source.choice(names), 3)):
            shares.charge(name, tokens)
            clocks[name] += tokens
    assert len(shares._heap) <= 64 + 4 * len(names)


def test_the_shares_that_are_due_make_one() -> None:
    shares = FairShares()
    shares.join("a", 1.0)
    shares.join("b", 3.0)
    assert (shares.share("a"), shares.share("b")) == (0.25, 0.75)
    shares.leave("b")
    assert shares.share("a") == 1.0


def test_each_step_of_priority_doubles_the_weight_within_bounds() -> None:
    assert [weigh(priority) for priority in (-1, 0, 1, 3)] == [0.5, 1.0, 2.0, 8.0]
    assert weigh(1000) == weigh(8)
    assert weigh(-1000) == weigh(-8)
