"""Scaling of the memory tier: nothing goes that was not drained, and nothing drains in vain."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories_operator import NOW_S, make_inspection, make_observed, make_pod
from glinthawk_operator.gateway_client import GatewayWorker
from glinthawk_operator.manifests.names import (
    DELETION_COST_ANNOTATION,
    DRAIN_FAILED_ANNOTATION,
    DRAIN_STARTED_ANNOTATION,
)
from glinthawk_operator.reconcile.actions import Annotate, Announce, CancelDrain, Drain, Scale
from glinthawk_operator.reconcile.observed import Observed, PodView
from glinthawk_operator.reconcile.scaling import plan_scaling

TIMEOUT_S = 600.0


def world(pods: list[PodView], states: dict[str, str], replicas: int | None = None) -> Observed:
    return make_observed(pods=pods, states=states, workers=replicas or len(pods))


def marked(name: str, ago_s: float = 1.0, **fields: object) -> PodView:
    return make_pod(name, drain_started_s=NOW_S - ago_s, **fields)


def test_growth_is_written_at_once() -> None:
    plan = plan_scaling(world([make_pod("a")], {"a": "active"}), 3, TIMEOUT_S)
    assert plan.actions == (Scale("demo-attention", 3),)


def test_the_right_size_asks_for_nothing() -> None:
    observed = world([make_pod("a"), make_pod("b")], {"a": "active", "b": "active"})
    assert plan_scaling(observed, 2, TIMEOUT_S).actions == ()


def test_a_worker_is_marked_first_and_nothing_else() -> None:
    observed = world([make_pod("a"), make_pod("b")], {"a": "active", "b": "active"})
    (action,) = plan_scaling(observed, 1, TIMEOUT_S).actions
    assert isinstance(action, Annotate)
    assert set(action.annotations) == {DELETION_COST_ANNOTATION, DRAIN_STARTED_ANNOTATION}


def test_a_marked_worker_is_drained_before_its_time_is_over() -> None:
    observed = world([make_pod("a"), marked("b")], {"a": "active", "b": "active"})
    plan = plan_scaling(observed, 1, TIMEOUT_S)
    (action,) = plan.actions
    assert isinstance(action, Drain)
    assert action.worker == "b"
    assert 0 < action.deadline_s < TIMEOUT_S
    assert plan.num_draining == 1


def test_a_worker_that_drains_is_waited_for() -> None:
    observed = world([make_pod("a"), marked("b")], {"a": "active", "b": "draining"})
    assert plan_scaling(observed, 1, TIMEOUT_S).actions == ()


@pytest.mark.parametrize("states", [{"a": "active", "b": "drained"}, {"a": "active"}])
def test_a_drained_or_unknown_worker_lets_replicas_be_lowered(states: dict[str, str]) -> None:
    observed = world([make_pod("a"), marked("b")], states)
    assert plan_scaling(observed, 1, TIMEOUT_S).actions == (Scale("demo-attention", 1),)


def test_while_the_gateway_is_silent_no_ready_worker_goes() -> None:
    observed = replace(world([make_pod("a"), marked("b")], {}), inspection=None)
    assert plan_scaling(observed, 1, TIMEOUT_S).actions == ()


def test_lowered_replicas_are_not_lowered_twice_nor_marks_taken_back() -> None:
    """The Deployment's controller has yet to delete the pod."""
    observed = world([make_pod("a"), marked("b")], {"a": "active", "b": "drained"}, replicas=1)
    assert plan_scaling(observed, 1, TIMEOUT_S).actions == ()


def test_those_not_ready_go_first_then_those_with_the_least_kv() -> None:
    pods = [make_pod("a"), make_pod("b"), make_pod("c", is_ready=False)]
    observed = world(pods, {"a": "active", "b": "active"})
    workers = (GatewayWorker("a", "active", kv_used_bytes=9), GatewayWorker("b", "active", 0, 5))
    observed = replace(observed, inspection=replace(make_inspection({}), workers=workers))
    marks = plan_scaling(observed, 1, TIMEOUT_S).actions
    assert [mark.name for mark in marks if isinstance(mark, Annotate)] == ["c", "b"]


def test_pods_that_were_never_made_hold_nothing_up() -> None:
    observed = world([make_pod("a")], {"a": "active"}, replicas=3)
    assert plan_scaling(observed, 1, TIMEOUT_S).actions == (Scale("demo-attention", 1),)


def test_demand_that_returns_takes_drains_back() -> None:
    observed = world([make_pod("a"), marked("b")], {"a": "active", "b": "draining"})
    cancel, unmark = plan_scaling(observed, 2, TIMEOUT_S).actions
    assert cancel == CancelDrain("b")
    assert isinstance(unmark, Annotate)
    assert set(unmark.annotations.values()) == {None}


def test_less_surplus_than_drains_keeps_those_that_are_furthest() -> None:
    pods = [make_pod("a"), marked("b"), marked("c", 50.0)]
    observed = world(pods, {"a": "active", "b": "drained", "c": "draining"})
    actions = plan_scaling(observed, 2, TIMEOUT_S).actions
    assert CancelDrain("c") in actions
    assert CancelDrain("b") not in actions
    assert Scale("demo-attention", 2) in actions


def test_a_drain_past_its_deadline_is_taken_back_and_reported() -> None:
    observed = world([make_pod("a"), marked("b", 601.0)], {"a": "active", "b": "draining"})
    actions = plan_scaling(observed, 1, TIMEOUT_S).actions
    assert CancelDrain("b") in actions
    assert any(isinstance(one, Announce) and one.reason == "DrainTimedOut" for one in actions)
    (mark,) = [one for one in actions if isinstance(one, Annotate) and one.name == "b"]
    assert mark.annotations[DRAIN_FAILED_ANNOTATION] is not None
    assert not any(isinstance(one, Scale) for one in actions)


def test_a_worker_whose_drain_failed_is_not_chosen_again_at_once() -> None:
    pods = [make_pod("a"), make_pod("b", drain_failed_s=NOW_S - 10)]
    observed = world(pods, {"a": "active", "b": "active"})
    (mark,) = plan_scaling(observed, 1, TIMEOUT_S).actions
    assert isinstance(mark, Annotate)
    assert mark.name == "a"


states = st.sampled_from(["active", "draining", "drained", "lost", None])


@settings(deadline=None)
@given(
    st.lists(st.tuples(states, st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(-2, 2),
)
def test_no_worker_with_sequences_is_ever_let_go(
    drawn: list[tuple[str | None, bool, bool]], wanted: int, skew: int
) -> None:
    pods = [
        make_pod(f"w{index}", is_ready=ready, drain_started_s=NOW_S - 1 if is_marked else None)
        for index, (_, ready, is_marked) in enumerate(drawn)
    ]
    known = {f"w{index}": state for index, (state, _, _) in enumerate(drawn) if state}
    replicas = max(1, len(pods) + skew)
    plan = plan_scaling(world(pods, known, replicas=replicas), wanted, TIMEOUT_S)
    scales = [one for one in plan.actions if isinstance(one, Scale)]
    assert len(scales) <= 1
    if scales and scales[0].replicas < replicas:
        assert scales[0].replicas >= wanted
        free = sum(
            is_marked and (not ready or state in ("drained", "lost", None))
            for state, ready, is_marked in drawn
        )
        assert len(pods) - scales[0].replicas <= free
