"""plan(desired, observed): all that one reconcile does, in order."""

from dataclasses import dataclass

from glinthawk_operator.manifests.applied import is_applied
from glinthawk_operator.manifests.build import Desired
from glinthawk_operator.manifests.context import Manifest
from glinthawk_operator.manifests.names import INSTANCE_LABEL, STAGE
from glinthawk_operator.reconcile.actions import Action, Announce, Apply, Create, Delete
from glinthawk_operator.reconcile.observed import Observed, PodView, cache_claim, cache_node
from glinthawk_operator.reconcile.rollout import Rollout, plan_rollout
from glinthawk_operator.reconcile.scaling import ScalingPlan, plan_scaling

PRUNED_KINDS = ("NetworkPolicy", "ServiceMonitor")
"""Kinds of which a resource may want fewer than before."""


@dataclass(frozen=True)
class Plan:
    """What to do, and what the conditions need to know of it."""

    actions: tuple[Action, ...]
    rollout: Rollout
    scaling: ScalingPlan


def plan(
    desired: Desired,
    observed: Observed,
    secrets: tuple[Manifest, ...],
    *,
    wanted_workers: int,
    drain_timeout_s: float,
) -> Plan:
    """Return what brings the cluster nearer to what is wanted; nothing if it is there."""
    rollout = plan_rollout(desired, observed)
    scaling = plan_scaling(observed, wanted_workers, drain_timeout_s)
    actions = (
        *(Create(one) for one in secrets if _live(one, observed) is None),
        *(Apply(one) for one in desired.supporting if not is_applied(one, _live(one, observed))),
        *_prune(desired, observed),
        *rollout.actions,
        *scaling.actions,
        *_free_stages(observed),
    )
    return Plan(actions, rollout, scaling)


def _live(manifest: Manifest, observed: Observed) -> Manifest | None:
    found = observed.objects.get((manifest["kind"], manifest["metadata"]["name"]))
    return None if found is None else dict(found)


def _prune(desired: Desired, observed: Observed) -> list[Action]:
    wanted = {(one["kind"], one["metadata"]["name"]) for one in desired.supporting}
    return [
        Delete(kind, name, body["metadata"]["uid"])
        for (kind, name), body in observed.objects.items()
        if kind in PRUNED_KINDS
        and (kind, name) not in wanted
        and INSTANCE_LABEL in body["metadata"].get("labels", {})
        and body["metadata"].get("deletionTimestamp") is None
    ]


def _free_stages(observed: Observed) -> list[Action]:
    """Make room for stages whose node is lost.

    A StatefulSet makes no second pod while the first may still run. Here it may: a stage's epoch
    is of its registration, so frames of the lost one are dropped. The gateway's pod is never
    forced: two gateways on one volume would be two truths.
    """
    actions: list[Action] = []
    for pod in observed.pods:
        if pod.component != STAGE:
            continue
        if pod.node is not None and pod.node in observed.lost_nodes:
            actions.append(Delete("Pod", pod.name, pod.uid, 0))
            message = (
                f"stage {pod.name} is made anew, for its node {pod.node} is lost; what it computed "
                "is computed again"
            )
            actions.append(Announce("StageOnLostNode", message, is_warning=True))
        elif not pod.is_ending and pod.waits_for_volume:
            actions += _give_up_cache(pod, observed)
    return actions


def _give_up_cache(pod: PodView, observed: Observed) -> list[Action]:
    """Delete a cache on a node that is gone; what it held is fetched again."""
    claim = observed.objects.get(("PersistentVolumeClaim", cache_claim(pod.name)))
    if claim is None or claim["metadata"].get("deletionTimestamp") is not None:
        return []
    node = cache_node(observed.objects, pod.name)
    if node is None or node not in observed.lost_nodes:
        return []
    message = f"the cache of {pod.name} was on the lost node {node}; its tensors are fetched again"
    return [
        Delete("PersistentVolumeClaim", cache_claim(pod.name), claim["metadata"]["uid"]),
        Delete("Pod", pod.name, pod.uid),
        Announce("CacheOnLostNode", message, is_warning=True),
    ]
