"""Gathers what is there for one reconcile: from the index, the gateway, and now and then the API
server for what is not watched. What it remembers between turns only saves asking again."""

from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from glinthawk_operator.autoscaler import Figures, History
from glinthawk_operator.cluster import Cluster
from glinthawk_operator.errors import ApiNotFound, GatewayError
from glinthawk_operator.executor import Marks
from glinthawk_operator.gateway_client import GatewayClient, Inspection
from glinthawk_operator.index import ObjectIndex, OwnedObjects, ResourceKey
from glinthawk_operator.manifests.context import Context
from glinthawk_operator.manifests.names import GATEWAY, STAGE
from glinthawk_operator.metrics import OperatorMetrics
from glinthawk_operator.reconcile.observed import (
    Observed,
    PodView,
    cache_claim,
    cache_node,
    node_lost_since,
    view_pods,
    view_workloads,
)
from glinthawk_operator.references import find_missing
from glinthawk_operator.settings import Settings

UNWATCHED_EVERY_S = 600.0
"""How often Secrets and ServiceMonitors are looked at: a watch would bring everybody's."""

MISSING_EVERY_S = 30.0

MAX_SILENCE_S = 30.0
"""Longest time that a gateway which did not answer is not asked again."""


@dataclass(frozen=True)
class Silence:
    """A gateway that did not answer. pods: that it had then. count: how often in a row."""

    pods: frozenset[tuple[str, bool]]
    count: int
    until_s: float
    why: str


@dataclass
class Memory:
    """What is remembered of a resource between turns; losing it loses nothing."""

    marks: Marks = field(default_factory=Marks)
    history: History = field(default_factory=History)
    figures: Figures | None = None
    figures_written_s: float | None = None
    looked_at_s: float | None = None
    missing: tuple[str, ...] = ()
    missing_at_s: float | None = None
    missing_of: int | None = None
    silence: Silence | None = None


class Observer:
    """See the module. Any thread may call it, for one resource one at a time."""

    def __init__(
        self,
        cluster: Cluster,
        index: ObjectIndex,
        settings: Settings,
        metrics: OperatorMetrics,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._index = index
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._monitors: tuple[bool, float] | None = None

    def knows_monitors(self) -> bool:
        """Tell whether the cluster has ServiceMonitors; asked for again now and then."""
        now_s = self._clock()
        if self._monitors is None or now_s - self._monitors[1] > UNWATCHED_EVERY_S:
            self._monitors = (self._cluster.knows("ServiceMonitor"), now_s)
        return self._monitors[0]

    def look_at_unwatched(self, key: ResourceKey, context: Context, memory: Memory) -> None:
        """Bring into the index what no watch brings: our Secrets, and the ServiceMonitor."""
        now_s, owned = self._clock(), self._index.read(key)
        places = [("Secret", context.secret_name)]
        if context.spec.gateway.api_keys_secret is None:
            places.append(("Secret", context.keys_secret_name))
        is_whole = all(owned.get(*place) is not None for place in places)
        looked_s = memory.looked_at_s
        if is_whole and looked_s is not None and now_s - looked_s < UNWATCHED_EVERY_S:
            return
        if context.monitors_known:
            places.append(("ServiceMonitor", context.child()))
        for kind, name in places:
            known = owned.get(kind, name)
            try:
                self._index.put(kind, self._cluster.get(kind, name, context.namespace), key)
            except ApiNotFound:
                if known is not None:
                    self._index.remove(kind, known, key)
        memory.looked_at_s = now_s

    def gateway(self, context: Context, owned: OwnedObjects) -> GatewayClient | None:
        """Return the resource's gateway, None while the cluster's secret is not known."""
        secret = owned.get("Secret", context.secret_name)
        if secret is None:
            return None
        url = self._settings.control_url.format(
            namespace=context.namespace,
            name=context.name,
            service=context.peers_service(GATEWAY),
        )
        token = b64decode((secret.get("data") or {}).get("secret", "")).decode()
        return GatewayClient(
            url, secret=token or None, timeout_s=self._settings.control_timeout_seconds
        )

    def inspect(
        self, gateway: GatewayClient | None, owned: OwnedObjects, memory: Memory
    ) -> tuple[Inspection | None, str | None]:
        """Ask the gateway how it stands, unless no pod of it runs; else return why it is silent.

        One that does not answer holds up a thread each time, so it is asked less and less often
        until its pod changes.
        """
        now_s = self._clock()
        pods = [pod for pod in view_pods(owned.of_kind("Pod")) if pod.component == GATEWAY]
        if gateway is None or not any(pod.phase == "Running" for pod in pods):
            return None, "its pod does not run"
        now = frozenset((pod.uid, pod.is_ready) for pod in pods)
        before = memory.silence if memory.silence and memory.silence.pods == now else None
        if before is not None and now_s < before.until_s:
            return None, before.why
        try:
            inspection = gateway.inspect()
        except GatewayError as error:
            self._metrics.errors.labels(type(error).__name__).inc()
            count = 1 if before is None else before.count + 1
            pause_s = min(MAX_SILENCE_S, self._settings.poll_seconds * 2.0 ** min(count - 1, 16))
            # From its end on: what it took is part of what is to be saved.
            memory.silence = Silence(now, count, self._clock() + pause_s, str(error))
            return None, str(error)
        memory.silence = None
        return inspection, None

    def observe(
        self,
        context: Context,
        owned: OwnedObjects,
        inspection: Inspection | None,
        memory: Memory,
        body: Any,
    ) -> Observed:
        """Return the resource's world as it is now."""
        now_s = self._clock()
        pods = view_pods(owned.of_kind("Pod"))
        objects = dict(owned.objects)
        # Where nodes are not watched, none is ever found lost, and no cache is given up.
        for pod in pods if self._index.nodes() else ():
            if pod.component == STAGE and pod.waits_for_volume and not pod.is_ending:
                self._add_cache(context, pod.name, objects)
        return Observed(
            now_s=now_s,
            objects=objects,
            pods=pods,
            workloads=view_workloads(objects),
            lost_nodes=self._lost_nodes(now_s, pods, objects),
            inspection=inspection,
            missing=self._missing(context, memory, body["metadata"]["generation"]),
        )

    def _add_cache(self, context: Context, pod: str, objects: dict[tuple[str, str], Any]) -> None:
        """Look up the cache of a stage that no node takes: it may be on one that is lost."""
        name = cache_claim(pod)
        try:
            claim = self._cluster.get("PersistentVolumeClaim", name, context.namespace)
            objects["PersistentVolumeClaim", name] = claim
            volume = claim["spec"].get("volumeName")
            if volume:
                objects["PersistentVolume", volume] = self._cluster.get("PersistentVolume", volume)
        except ApiNotFound:
            return

    def _lost_nodes(
        self, now_s: float, pods: tuple[PodView, ...], objects: dict[tuple[str, str], Any]
    ) -> frozenset[str]:
        """Return which nodes of our pods and caches are gone, or NotReady for long."""
        if not self._index.nodes():
            return frozenset()  # nodes may not be watched; then nothing is known of them
        nodes = {pod.node for pod in pods} | {cache_node(objects, pod.name) for pod in pods}
        lost = set()
        for name in nodes:
            if name is None:
                continue
            body = self._index.node(name)
            since_s = 0.0 if body is None else node_lost_since(body)
            if since_s is not None and now_s - since_s >= self._settings.lost_node_seconds:
                lost.add(name)
        return frozenset(lost)

    def _missing(self, context: Context, memory: Memory, generation: int) -> tuple[str, ...]:
        """Look for what the spec names: when it is new, and again while something is missing."""
        now_s = self._clock()
        is_due = memory.missing_of != generation or (
            bool(memory.missing)
            and (memory.missing_at_s is None or now_s - memory.missing_at_s >= MISSING_EVERY_S)
        )
        if is_due:
            memory.missing = find_missing(self._cluster, context.spec, context.namespace)
            memory.missing_of, memory.missing_at_s = generation, now_s
        return memory.missing
