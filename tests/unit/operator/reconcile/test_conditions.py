"""Conditions and status: never ready beside a broken tier, and silent at rest."""

from dataclasses import replace
from typing import Any

from factories_operator import (
    GIB,
    NOW_S,
    all_objects,
    all_pods,
    make_context,
    make_inspection,
    make_observed,
    make_pod,
)
from glinthawk_operator.autoscaler import Decision, History, Reason, Rules
from glinthawk_operator.crd.status import Condition, GlinthawkDeploymentStatus, find_condition
from glinthawk_operator.manifests.build import desired
from glinthawk_operator.reconcile.conditions import Subject, build_conditions
from glinthawk_operator.reconcile.observed import Observed, view_workloads
from glinthawk_operator.reconcile.plan import plan
from glinthawk_operator.reconcile.status import (
    Outcome,
    build_status,
    diff_status,
    dump_status,
)

CONTEXT = make_context()
WANTED = desired(CONTEXT)
RULES = Rules(min_replicas=1, max_replicas=3, capacity_per_worker_bytes=GIB)


def subject_of(observed: Observed, **fields: Any) -> Subject:
    made = plan(WANTED, observed, (), wanted_workers=1, drain_timeout_s=600.0)
    return replace(Subject(CONTEXT.spec, 1, observed, made, RULES, 1), **fields)


def answer(subject: Subject, kind: str, before: tuple[Condition, ...] = ()) -> Condition:
    found = find_condition(build_conditions(subject, before), kind)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_all_is_well() -> None:
    subject = subject_of(make_observed(WANTED))
    answers = {one.type: one.status for one in build_conditions(subject, ())}
    assert answers == {
        "Ready": "True",
        "Progressing": "False",
        "Degraded": "False",
        "KVPressure": "False",
    }


def test_is_not_ready_though_the_gateway_says_so_while_a_stage_is_missing() -> None:
    pods = [pod for pod in all_pods(WANTED) if pod.name != "demo-stage-1"]
    ready = answer(subject_of(make_observed(WANTED, pods=pods)), "Ready")
    assert (ready.status, ready.reason) == ("False", "StagesMissing")
    assert "1 of 2" in ready.message


def test_is_not_ready_while_the_gateway_is_silent() -> None:
    observed = replace(make_observed(WANTED), inspection=None)
    ready = answer(subject_of(observed, gateway_error="no route"), "Ready")
    assert (ready.status, ready.reason) == ("False", "GatewayUnreachable")
    assert "no route" in ready.message


def test_workers_that_are_lost_have_not_joined() -> None:
    inspection = make_inspection({"w0": "active", "gone": "lost"}, is_ready=False)
    ready = answer(subject_of(make_observed(WANTED, inspection=inspection)), "Ready")
    assert ready.reason == "TiersNotJoined"
    assert "and 1 workers have joined" in ready.message


def test_what_a_pod_said_last_is_passed_on() -> None:
    problem = ("CrashLoopBackOff", "error: stage 1 needs 18 GiB, device_memory is 16 GiB")
    pods = [
        *all_pods(WANTED)[:-2],
        make_pod("demo-stage-1", "stage", is_ready=False, problem=problem),
        all_pods(WANTED)[-1],
    ]
    degraded = answer(subject_of(make_observed(WANTED, pods=pods)), "Degraded")
    assert degraded.reason == "CrashLoopBackOff"
    assert "needs 18 GiB" in degraded.message


def test_an_error_of_the_scheduler_says_less_than_a_pod_that_fits_nowhere() -> None:
    pods = [
        make_pod("demo-stage-0", "stage", is_ready=False, problem=("SchedulerError", "conflict")),
        make_pod(
            "demo-attention-0", "attention", is_ready=False, problem=("Unschedulable", "full")
        ),
    ]
    both = answer(subject_of(make_observed(WANTED, pods=pods)), "Degraded")
    assert (both.reason, both.message) == ("Unschedulable", "demo-attention-0: full")
    alone = answer(subject_of(make_observed(WANTED, pods=pods[:1])), "Degraded")
    assert (alone.reason, alone.message) == ("SchedulerError", "demo-stage-0: conflict")


def test_what_the_spec_names_and_is_not_there_is_said() -> None:
    observed = make_observed(WANTED, missing=("model.source names the claim x",))
    degraded = answer(subject_of(observed), "Degraded")
    assert (degraded.status, degraded.reason) == ("True", "ReferenceMissing")


def test_a_quota_that_lets_no_pod_be_made_is_said() -> None:
    message = 'pods "demo-attention-x" is forbidden: exceeded quota: little, limited: pods=6'
    objects = all_objects(WANTED, workers=2)
    failure = {"type": "ReplicaFailure", "status": "True", "message": message}
    objects["Deployment", "demo-attention"]["status"]["conditions"] = [failure]
    observed = make_observed(WANTED)
    refused = replace(observed, workloads=view_workloads(objects))
    degraded = answer(subject_of(refused), "Degraded")
    assert (degraded.status, degraded.reason) == ("True", "PodsRefused")
    assert "limited: pods=6" in degraded.message


def test_pods_that_a_stateful_set_does_not_make_are_said_with_where_to_look() -> None:
    pods = [pod for pod in all_pods(WANTED) if pod.name != "demo-stage-1"]
    degraded = answer(subject_of(make_observed(WANTED, pods=pods)), "Degraded")
    assert degraded.reason == "PodsMissing"
    assert "1 of 2 pods are made: kubectl describe statefulset demo-stage" in degraded.message


def test_demand_above_the_maximum_is_pressure() -> None:
    inspection = make_inspection({"w0": "active"}, kv_demanded_bytes=4 * GIB)
    pressure = answer(subject_of(make_observed(WANTED, inspection=inspection)), "KVPressure")
    assert pressure.status == "True"
    assert "maxReplicas" in pressure.message


def test_an_answer_that_stays_keeps_its_time() -> None:
    first = build_conditions(subject_of(make_observed(WANTED)), ())
    later = subject_of(make_observed(WANTED, now_s=NOW_S + 100))
    assert answer(later, "Ready", first).last_transition_time == first[0].last_transition_time
    broken = subject_of(make_observed(WANTED, now_s=NOW_S + 100, pods=[]))
    assert answer(broken, "Ready", first).last_transition_time != first[0].last_transition_time


def test_a_rollout_that_makes_no_end_is_stuck_until_the_spec_changes() -> None:
    pods = [pod for pod in all_pods(WANTED) if pod.component != "stage"]
    first = build_conditions(subject_of(make_observed(WANTED, pods=pods)), ())
    late = subject_of(make_observed(WANTED, pods=pods, now_s=NOW_S + 1801))
    second = build_conditions(late, first)
    stuck = find_condition(second, "Progressing")
    assert stuck is not None
    assert (stuck.status, stuck.reason) == ("False", "ProgressDeadlineExceeded")
    third = answer(late, "Progressing", second)
    assert third.reason == "ProgressDeadlineExceeded"
    assert answer(replace(late, generation=2), "Progressing", second).status == "True"


def status_at(
    now_s: float,
    demanded: int,
    before: GlinthawkDeploymentStatus,
    written_s: float | None = None,
    replicas_before: int | None = None,
) -> GlinthawkDeploymentStatus:
    inspection = make_inspection({"w0": "active"}, kv_demanded_bytes=demanded)
    observed = make_observed(WANTED, inspection=inspection, now_s=now_s)
    decision = Decision(1, Reason.STEADY, 1.0, None, History())
    outcome = Outcome("demo", "http://demo", decision, replicas_before, written_s)
    return build_status(subject_of(observed), outcome, before)


def test_a_status_that_says_the_same_needs_no_write() -> None:
    first = status_at(NOW_S, 1000, GlinthawkDeploymentStatus())
    second = status_at(NOW_S + 60, 1000, first)
    assert diff_status(dump_status(first), dump_status(second)) == {}


def test_figures_are_written_when_they_moved_far_enough_and_not_too_often() -> None:
    first = status_at(NOW_S, 1000, GlinthawkDeploymentStatus())

    def demanded(now_s: float, value: int) -> int | None:
        status = status_at(now_s, value, first, written_s=NOW_S)
        assert status.memory_tier is not None
        assert status.memory_tier.kv_bytes is not None
        return status.memory_tier.kv_bytes.demanded

    assert demanded(NOW_S + 60, 1040) == 1000
    assert demanded(NOW_S + 5, 2000) == 1000
    assert demanded(NOW_S + 11, 2000) == 2000
    assert demanded(NOW_S + 11, 0) == 0


def test_the_last_decision_stays_until_the_next() -> None:
    first = status_at(NOW_S, 0, GlinthawkDeploymentStatus(), replicas_before=3)
    second = status_at(NOW_S + 5, 0, first)
    assert first.memory_tier is not None
    assert second.memory_tier is not None
    assert first.memory_tier.last_decision == second.memory_tier.last_decision
    assert first.memory_tier.last_decision is not None
    assert first.memory_tier.last_decision.from_replicas == 3


def test_a_patch_removes_what_is_no_longer_said() -> None:
    before = {"a": 1, "b": {"c": 1, "d": 2}, "e": [1]}
    after = {"b": {"c": 1, "d": 3}, "e": [1]}
    assert diff_status(before, after) == {"a": None, "b": {"d": 3}}
