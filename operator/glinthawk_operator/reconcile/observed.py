"""What is there, as frozen data: Kubernetes' dicts end here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from glinthawk_operator.gateway_client import Inspection
from glinthawk_operator.manifests.build import template_hash
from glinthawk_operator.manifests.names import (
    COMPONENT_LABEL,
    COMPONENTS,
    DRAIN_FAILED_ANNOTATION,
    DRAIN_STARTED_ANNOTATION,
    HOST_LABEL,
)

Body = Mapping[str, Any]


@dataclass(frozen=True)
class PodView:
    """A pod. Times in seconds since 1970.

    problem: reason and message of a container that waits or failed, or of the scheduler.
    result: what its container said at its end, if it ended well.
    """

    name: str
    uid: str
    component: str
    template_hash: str = ""
    phase: str = "Pending"
    is_ready: bool = False
    is_ending: bool = False
    is_scheduled: bool = True
    node: str | None = None
    created_s: float = 0.0
    drain_started_s: float | None = None
    drain_failed_s: float | None = None
    problem: tuple[str, str] | None = None
    result: str | None = None

    @property
    def waits_for_volume(self) -> bool:
        """Whether no node fits because a volume is bound to one that cannot take the pod."""
        text = "" if self.problem is None else self.problem[1].lower()
        return not self.is_scheduled and "volume" in text and "node affinity" in text


@dataclass(frozen=True)
class WorkloadView:
    """A StatefulSet or Deployment. is_current: its controller has seen its newest version.

    kind: of the object. refusal: why pods of it may not be made, such as a quota; a Deployment
    tells it, a StatefulSet does not.
    """

    name: str
    replicas: int
    image: str
    template_hash: str
    is_current: bool
    kind: str = "Deployment"
    refusal: str | None = None


@dataclass(frozen=True)
class Observed:
    """One resource's world at now_s (seconds since 1970).

    objects: the owned objects by kind and name. lost_nodes: those NotReady for long, or gone.
    inspection: what the gateway says, None if it does not answer.
    missing: objects that the spec names and that are not there, in words.
    """

    now_s: float
    objects: Mapping[tuple[str, str], Body]
    pods: tuple[PodView, ...]
    workloads: Mapping[str, WorkloadView]
    lost_nodes: frozenset[str] = frozenset()
    inspection: Inspection | None = None
    missing: tuple[str, ...] = ()

    def pods_of(self, component: str) -> list[PodView]:
        """Return the pods of a component that are not ending, by name."""
        return [one for one in self.pods if one.component == component and not one.is_ending]

    def num_ready(self, component: str) -> int:
        """Return how many pods of a component are ready."""
        return sum(one.is_ready for one in self.pods_of(component))


def view_pods(bodies: Iterable[Body]) -> tuple[PodView, ...]:
    """Return pods as they are seen here, by name."""
    return tuple(sorted(map(view_pod, bodies), key=lambda pod: pod.name))


def view_pod(body: Body) -> PodView:
    """Return a pod as it is seen here."""
    metadata, status = body["metadata"], body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        component=(metadata.get("labels") or {}).get(COMPONENT_LABEL, ""),
        template_hash=template_hash(body),
        phase=status.get("phase", "Pending"),
        is_ready=conditions.get("Ready", {}).get("status") == "True",
        is_ending=metadata.get("deletionTimestamp") is not None,
        is_scheduled=conditions.get("PodScheduled", {}).get("status") != "False",
        node=(body.get("spec") or {}).get("nodeName"),
        created_s=parse_time(metadata.get("creationTimestamp")) or 0.0,
        drain_started_s=parse_time(annotations.get(DRAIN_STARTED_ANNOTATION)),
        drain_failed_s=parse_time(annotations.get(DRAIN_FAILED_ANNOTATION)),
        problem=_problem(status, conditions),
        result=_result(status),
    )


def view_workloads(
    objects: Mapping[tuple[str, str], Body],
) -> dict[str, WorkloadView]:
    """Return the workloads by component."""
    views = {}
    for (kind, name), body in objects.items():
        component = (body["metadata"].get("labels") or {}).get(COMPONENT_LABEL)
        if kind not in ("StatefulSet", "Deployment") or component not in COMPONENTS:
            continue
        spec, status = body["spec"], body.get("status") or {}
        views[component] = WorkloadView(
            name=name,
            replicas=int(spec.get("replicas", 1)),
            image=spec["template"]["spec"]["containers"][0]["image"],
            template_hash=template_hash(spec["template"]),
            is_current=status.get("observedGeneration", 0) >= body["metadata"].get("generation", 0),
            kind=kind,
            refusal=_refusal(status),
        )
    return views


def node_lost_since(body: Body) -> float | None:
    """Return since when a node is not ready; None while it is."""
    for one in (body.get("status") or {}).get("conditions") or []:
        if one["type"] == "Ready":
            if one["status"] == "True":
                return None
            return parse_time(one.get("lastTransitionTime")) or 0.0
    return None


def cache_claim(pod: str) -> str:
    """Return the name of the claim of a stage's cache."""
    return f"cache-{pod}"


def cache_node(objects: Mapping[tuple[str, str], Body], pod: str) -> str | None:
    """Return the node on which a stage's cache is; None where it is not known.

    It is the name of the node for which the volume was made; a volume that was there before is of
    one node only if it says so, by that node's host label.
    """
    claim = objects.get(("PersistentVolumeClaim", cache_claim(pod)))
    if claim is None:
        return None
    annotations = claim["metadata"].get("annotations") or {}
    node = annotations.get("volume.kubernetes.io/selected-node")
    if node is not None:
        return str(node)
    name = (claim.get("spec") or {}).get("volumeName", "")
    volume = objects.get(("PersistentVolume", name)) or {}
    affinity = ((volume.get("spec") or {}).get("nodeAffinity") or {}).get("required") or {}
    terms = affinity.get("nodeSelectorTerms") or []
    if len(terms) != 1:
        return None  # any of the terms is enough, so it may be elsewhere too
    for one in terms[0].get("matchExpressions") or []:
        if (one["key"], one["operator"]) == (HOST_LABEL, "In") and len(one["values"]) == 1:
            return str(one["values"][0])
    return None


def parse_time(text: str | None) -> float | None:
    """Return the seconds since 1970 of a time as Kubernetes writes it; None if it is none."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def format_time(seconds: float) -> str:
    """Return a time as Kubernetes writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _containers(status: Body) -> list[Body]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _problem(status: Body, conditions: Mapping[str, Body]) -> tuple[str, str] | None:
    for container in _containers(status):
        state, last = container.get("state") or {}, container.get("lastState") or {}
        ended = state.get("terminated") or last.get("terminated") or {}
        waiting = state.get("waiting") or {}
        if ended.get("exitCode"):
            text = (ended.get("message") or "").strip().splitlines()
            message = text[-1] if text else f"exit code {ended['exitCode']}"
            if not container.get("ready"):
                return str(waiting.get("reason") or ended.get("reason") or "Error"), message
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return str(waiting["reason"]), str(waiting.get("message", ""))
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return str(scheduled.get("reason", "Unschedulable")), str(scheduled.get("message", ""))
    if status.get("phase") == "Failed":
        return str(status.get("reason", "Failed")), str(status.get("message", ""))
    return None


def _refusal(status: Body) -> str | None:
    for one in status.get("conditions") or []:
        if one["type"] == "ReplicaFailure" and one["status"] == "True":
            return str(one.get("message", ""))
    return None


def _result(status: Body) -> str | None:
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode") == 0:
            return str(ended.get("message", ""))
    return None
