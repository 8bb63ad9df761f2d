"""Brings the memory tier to a size without losing anything.

    chosen -> marked (annotations) -> draining -> drained -> replicas lowered -> the pod ends

Each step is made when the watches show the one before it, so a restart goes on where it was: the
marks are on the pods. A pod that is not ready, or that the gateway does not know, holds nothing
and may go at once. Demand that returns takes marks and drains back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glinthawk_operator.gateway_client import DRAINED, DRAINING, LOST
from glinthawk_operator.manifests.names import (
    ATTENTION,
    DELETION_COST_ANNOTATION,
    DRAIN_FAILED_ANNOTATION,
    DRAIN_STARTED_ANNOTATION,
)
from glinthawk_operator.reconcile.actions import (
    Action,
    Annotate,
    Announce,
    CancelDrain,
    Drain,
    Scale,
)
from glinthawk_operator.reconcile.observed import Observed, PodView, format_time

VICTIM_COST = "-1000"

GATEWAY_SHARE = 0.8
"""Of the time for a drain: as long sequences may run on; then the gateway computes them elsewhere,
for which the rest is."""


@dataclass(frozen=True)
class ScalingPlan:
    """What to do, and how many workers are on their way out."""

    actions: tuple[Action, ...] = ()
    num_draining: int = 0


def plan_scaling(observed: Observed, wanted: int, drain_timeout_s: float) -> ScalingPlan:
    """Return what brings the memory tier nearer to `wanted` workers."""
    workload = observed.workloads.get(ATTENTION)
    if workload is None:
        return ScalingPlan()
    pods = observed.pods_of(ATTENTION)
    marked = [pod for pod in pods if pod.drain_started_s is not None]
    surplus = max(len(pods), workload.replicas) - wanted
    if surplus <= 0:
        actions = [action for pod in marked for action in _release(observed, pod)]
        if workload.replicas != wanted:
            actions.append(Scale(workload.name, wanted))
        return ScalingPlan(tuple(actions))
    # Pods that were never made need no drain, and those that already go need no second order.
    not_made = max(0, workload.replicas - len(pods))
    already = max(0, len(pods) - workload.replicas)
    to_drain = max(0, surplus - not_made)
    late = [pod for pod in marked if _is_late(observed, pod, drain_timeout_s)]
    leaving = _most_done_first(observed, [pod for pod in marked if pod not in late])
    actions = [action for pod in late for action in _give_up(observed, pod, drain_timeout_s)]
    actions += [action for pod in leaving[to_drain:] for action in _release(observed, pod)]
    leaving = leaving[:to_drain]
    actions += _mark(observed, pods, to_drain - len(leaving), drain_timeout_s)
    gone = 0
    for pod in leaving:
        if _may_go(observed, pod):
            gone += 1
        elif _state(observed, pod) == "active":
            actions.append(Drain(pod.name, drain_timeout_s * GATEWAY_SHARE))
    lower_by = min(surplus, gone + not_made) - already
    if lower_by > 0:
        actions.append(Scale(workload.name, workload.replicas - lower_by))
    return ScalingPlan(tuple(actions), len(leaving))


def _state(observed: Observed, pod: PodView) -> str | None:
    """Return a worker's state at the gateway; None where it is not known."""
    if observed.inspection is None:
        return None
    worker = observed.inspection.worker(pod.name)
    return LOST if worker is None else worker.state


def _may_go(observed: Observed, pod: PodView) -> bool:
    return not pod.is_ready or _state(observed, pod) in (DRAINED, LOST)


def _is_late(observed: Observed, pod: PodView, drain_timeout_s: float) -> bool:
    started_s = pod.drain_started_s
    is_over = started_s is not None and observed.now_s - started_s > drain_timeout_s
    return is_over and not _may_go(observed, pod) and observed.inspection is not None


def _most_done_first(observed: Observed, pods: Sequence[PodView]) -> list[PodView]:
    order = {DRAINED: 0, LOST: 0, DRAINING: 1}
    return sorted(
        pods,
        key=lambda pod: (
            pod.is_ready,
            order.get(_state(observed, pod) or "", 2),
            pod.drain_started_s,
            pod.name,
        ),
    )


def _mark(
    observed: Observed, pods: Sequence[PodView], count: int, drain_timeout_s: float
) -> list[Action]:
    """Choose further pods to go: those not ready first, then those with the least KV."""
    free = [
        pod
        for pod in pods
        if pod.drain_started_s is None and not _failed_lately(observed, pod, drain_timeout_s)
    ]
    used = (
        {}
        if observed.inspection is None
        else {worker.name: worker.kv_used_bytes for worker in observed.inspection.workers}
    )
    free.sort(key=lambda pod: (pod.is_ready, used.get(pod.name, 0), -pod.created_s, pod.name))
    marks = {
        DELETION_COST_ANNOTATION: VICTIM_COST,
        DRAIN_STARTED_ANNOTATION: format_time(observed.now_s),
    }
    return [Annotate(pod.name, pod.uid, marks) for pod in free[: max(0, count)]]


def _failed_lately(observed: Observed, pod: PodView, drain_timeout_s: float) -> bool:
    failed_s = pod.drain_failed_s
    return failed_s is not None and observed.now_s - failed_s < max(300.0, drain_timeout_s)


def _release(observed: Observed, pod: PodView) -> list[Action]:
    unmark: dict[str, str | None] = {
        DELETION_COST_ANNOTATION: None,
        DRAIN_STARTED_ANNOTATION: None,
    }
    cancel: list[Action] = []
    if _state(observed, pod) in (DRAINING, DRAINED):
        cancel = [CancelDrain(pod.name)]
    # The mark goes last: if the cancelling fails, the next turn finds it and tries again.
    return [*cancel, Annotate(pod.name, pod.uid, unmark)]


def _give_up(observed: Observed, pod: PodView, drain_timeout_s: float) -> list[Action]:
    *cancel, _ = _release(observed, pod)
    marks: dict[str, str | None] = {
        DELETION_COST_ANNOTATION: None,
        DRAIN_STARTED_ANNOTATION: None,
        DRAIN_FAILED_ANNOTATION: format_time(observed.now_s),
    }
    message = (
        f"worker {pod.name} was not drained within {drain_timeout_s:.0f} s, so it stays; see "
        "whether the other workers have room for what it holds, or raise "
        "memoryTier.scaling.scaleDown.drainTimeoutSeconds"
    )
    return [
        *cancel,
        Annotate(pod.name, pod.uid, marks),
        Announce("DrainTimedOut", message, is_warning=True),
    ]
