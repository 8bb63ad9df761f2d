"""Rollouts: images are checked first, and only what changed is replaced."""

from dataclasses import replace
from typing import Any

from factories_operator import NOW_S, all_pods, make_context, make_observed, make_pod
from glinthawk_operator.manifests.build import Desired, desired
from glinthawk_operator.reconcile.actions import Action, Apply, Create, Delete
from glinthawk_operator.reconcile.observed import PodView
from glinthawk_operator.reconcile.rollout import plan_rollout

OLD = desired(make_context())


def with_image(image: str) -> Desired:
    return desired(make_context(gpuTier={"image": image}))


def check_pod(wanted: Desired, **fields: Any) -> PodView:
    name = wanted.component("stage").check["metadata"]["name"]
    return make_pod(name, "check", is_ready=False, template_hash="", **fields)


def applied(actions: tuple[Action, ...]) -> set[tuple[str, str]]:
    return {
        (one.manifest["kind"], one.manifest["metadata"]["name"])
        for one in actions
        if isinstance(one, Apply)
    }


def test_at_rest_there_is_nothing_to_do() -> None:
    rollout = plan_rollout(OLD, make_observed(OLD))
    assert rollout.actions == ()
    assert rollout.is_done


def test_the_first_time_nothing_is_checked() -> None:
    observed = replace(make_observed(OLD), objects={}, workloads={}, pods=())
    rollout = plan_rollout(OLD, observed)
    assert len(applied(rollout.actions)) == 6
    assert not any(isinstance(one, Create) for one in rollout.actions)


def test_a_changed_image_is_checked_before_anything_is_touched() -> None:
    new = with_image("stage:2")
    rollout = plan_rollout(new, make_observed(OLD))
    (action,) = rollout.actions
    assert isinstance(action, Create)
    assert action.manifest["kind"] == "Pod"
    limits = action.manifest["spec"]["containers"][0]["resources"]["limits"]
    assert set(limits) == {"cpu", "memory"}  # no GPU
    assert rollout.checking == ("stage:2",)


def test_a_check_that_cannot_start_blocks_and_is_said() -> None:
    new = with_image("stage:2")
    pod = check_pod(new, phase="Pending", problem=("ErrImagePull", "no such image"))
    rollout = plan_rollout(new, make_observed(OLD, pods=[*all_pods(OLD), pod]))
    assert rollout.actions == ()
    assert rollout.failed == (("stage:2", "ErrImagePull: no such image"),)


def test_a_check_that_failed_long_ago_is_tried_again() -> None:
    new = with_image("stage:2")
    pod = check_pod(new, phase="Failed", problem=("Error", "boom"), created_s=NOW_S - 301)
    rollout = plan_rollout(new, make_observed(OLD, pods=[*all_pods(OLD), pod]))
    assert rollout.actions == (Delete("Pod", pod.name, pod.uid, 0),)


def test_a_check_that_ran_lets_the_change_through() -> None:
    new = with_image("stage:2")
    pods = [*all_pods(OLD), check_pod(new, phase="Succeeded")]
    rollout = plan_rollout(new, make_observed(OLD, pods=pods))
    assert applied(rollout.actions) == {("StatefulSet", "demo-stage")}
    assert not any(isinstance(one, Delete) for one in rollout.actions)


def test_stages_of_an_old_template_go_at_once_and_no_others() -> None:
    new = desired(make_context(gpuTier={"maxRows": 512}))
    rollout = plan_rollout(new, make_observed(new, pods=all_pods(OLD)))
    assert {one.name for one in rollout.actions if isinstance(one, Delete)} == {
        "demo-stage-0",
        "demo-stage-1",
    }
    assert rollout.num_outdated == 2
    assert not rollout.is_done


def test_pods_stay_until_their_controller_knows_the_new_template() -> None:
    new = desired(make_context(gpuTier={"maxRows": 512}))
    observed = make_observed(new, pods=all_pods(OLD))
    stage = replace(observed.workloads["stage"], is_current=False)
    observed = replace(observed, workloads={**observed.workloads, "stage": stage})
    assert plan_rollout(new, observed).actions == ()


def test_workers_in_use_are_left_to_their_deployment_and_idle_ones_go() -> None:
    new = desired(make_context(memoryTier={"kvCache": {"memory": "2Gi"}}))
    pods = all_pods(OLD, workers=2)
    observed = make_observed(new, workers=2, pods=pods, states={"w0": "active"})
    deleted = {one.name for one in plan_rollout(new, observed).actions if isinstance(one, Delete)}
    assert deleted == {"w1"}  # refused by the gateway, or never joined: it holds nothing


def test_check_pods_go_when_they_are_not_needed() -> None:
    pod = check_pod(with_image("stage:2"), phase="Succeeded")
    rollout = plan_rollout(OLD, make_observed(OLD, pods=[*all_pods(OLD), pod]))
    assert rollout.actions == (Delete("Pod", pod.name, pod.uid, 0),)
