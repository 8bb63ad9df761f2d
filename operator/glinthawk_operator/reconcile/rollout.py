"""Brings new templates to the pods: first a check of each new image, then all that changed.

    images changed? -> check pods -> one fails: nothing is touched
                                  -> all run:   settings and workloads are applied
    gateway, stages: pods of an old template are deleted at once, their StatefulSets make new ones
    workers: their Deployment replaces them one by one; those that hold nothing go at once

The first time there is nothing that serves, so nothing is checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from glinthawk_operator.gateway_client import LOST
from glinthawk_operator.manifests.applied import is_applied
from glinthawk_operator.manifests.build import Desired, DesiredComponent
from glinthawk_operator.manifests.check import CHECK
from glinthawk_operator.manifests.names import ATTENTION, COMPONENTS
from glinthawk_operator.reconcile.actions import Action, Apply, Create, Delete
from glinthawk_operator.reconcile.observed import Observed, PodView

RETRY_CHECK_S = 300.0

_HOPELESS = frozenset(
    {
        *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    }
)


@dataclass(frozen=True)
class Rollout:
    """How far the rollout is, and what it needs now.

    failed: image and reason of a check that failed. checking: images whose check still runs.
    outdated: pods of an old template. is_done: every pod there should be is of the new template.
    """

    actions: tuple[Action, ...]
    failed: tuple[tuple[str, str], ...] = ()
    checking: tuple[str, ...] = ()
    num_outdated: int = 0
    is_done: bool = False


def plan_rollout(desired: Desired, observed: Observed) -> Rollout:
    """Return what brings the pods nearer to the wanted templates."""
    needed = {
        one.check["metadata"]["name"]: one
        for one in desired.components
        if one.component in observed.workloads
        and observed.workloads[one.component].image != one.image
    }
    checks = {pod.name: pod for pod in observed.pods if pod.component == CHECK}
    actions: list[Action] = [
        Delete("Pod", pod.name, pod.uid, 0)
        for name, pod in checks.items()
        if not pod.is_ending and (name not in needed or _is_old_failure(observed, pod))
    ]
    failed, checking = [], []
    for name, component in needed.items():
        pod = checks.get(name)
        if pod is None:
            actions.append(Create(component.check))
        if pod is None or pod.phase != "Succeeded":
            reason = None if pod is None else _failure(pod)
            if reason is None:
                checking.append(component.image)
            else:
                failed.append((component.image, reason))
    if failed or checking:
        return Rollout(tuple(actions), tuple(failed), tuple(checking), _outdated(desired, observed))
    actions += [action for one in desired.components for action in _apply(one, observed)]
    actions += [action for one in desired.components for action in _replace_pods(one, observed)]
    num_outdated = _outdated(desired, observed)
    is_done = num_outdated == 0 and all(
        is_applied(one.workload, _live(one, observed)) for one in desired.components
    )
    return Rollout(tuple(actions), num_outdated=num_outdated, is_done=is_done)


def _apply(component: DesiredComponent, observed: Observed) -> list[Action]:
    manifests = (component.config_map, component.workload)
    return [
        Apply(one)
        for one in manifests
        if not is_applied(one, observed.objects.get((one["kind"], one["metadata"]["name"])))
    ]


def _live(component: DesiredComponent, observed: Observed) -> Mapping[str, object] | None:
    workload = component.workload
    return observed.objects.get((workload["kind"], workload["metadata"]["name"]))


def _replace_pods(component: DesiredComponent, observed: Observed) -> list[Action]:
    """Delete the pods of an old template, once their controller knows the new one."""
    workload = observed.workloads.get(component.component)
    if workload is None or not workload.is_current:
        return []
    if workload.template_hash != component.template_hash:
        return []
    return [
        Delete("Pod", pod.name, pod.uid)
        for pod in observed.pods_of(component.component)
        if pod.template_hash != component.template_hash
        and (component.component != ATTENTION or _is_idle(observed, pod))
    ]


def _is_idle(observed: Observed, pod: PodView) -> bool:
    """Tell whether a worker holds nothing: the gateway does not know it, or it is not ready.

    A gateway of another protocol refuses workers, so after such a change all of them are idle.
    """
    if observed.inspection is None:
        return False
    worker = observed.inspection.worker(pod.name)
    return worker is None or worker.state == LOST or not pod.is_ready


def _outdated(desired: Desired, observed: Observed) -> int:
    return sum(
        pod.template_hash != desired.component(component).template_hash
        for component in COMPONENTS
        for pod in observed.pods_of(component)
    )


def _failure(pod: PodView) -> str | None:
    """Return why a check will not succeed, None while it may."""
    if pod.problem is None:
        return "it failed without a word" if pod.phase == "Failed" else None
    reason, message = pod.problem
    if pod.phase == "Failed" or reason in _HOPELESS:
        return f"{reason}: {message}" if message else reason
    return None


def _is_old_failure(observed: Observed, pod: PodView) -> bool:
    return pod.phase == "Failed" and observed.now_s - pod.created_s > RETRY_CHECK_S
