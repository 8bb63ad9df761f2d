"""One reconcile of one resource: observe, decide, plan, do, say.

Everything that counts is in the cluster; what is remembered here between turns only saves writes
and carries the autoscaler's history. Any number of resources may be reconciled at a time, each by
one thread.
"""

from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from glinthawk_operator.autoscaler import (
    Decision,
    Figures,
    History,
    Rules,
    StepLimit,
    Tier,
    decide,
    follow_replicas,
)
from glinthawk_operator.cluster import Cluster
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.crd.status import Condition, GlinthawkDeploymentStatus, find_condition
from glinthawk_operator.errors import ApiNotFound, GatewayError
from glinthawk_operator.executor import Executor, Marks, Target
from glinthawk_operator.gateway_client import ACTIVE, GatewayClient, Inspection
from glinthawk_operator.index import ObjectIndex, OwnedObjects, ResourceKey, resource_key
from glinthawk_operator.logs import get_logger
from glinthawk_operator.manifests.build import desired
from glinthawk_operator.manifests.context import Context, Images
from glinthawk_operator.manifests.names import ATTENTION, GATEWAY, STAGE
from glinthawk_operator.manifests.secrets import build_secrets
from glinthawk_operator.manifests.services import endpoint
from glinthawk_operator.metrics import OperatorMetrics
from glinthawk_operator.reconcile.actions import Announce
from glinthawk_operator.reconcile.conditions import Subject
from glinthawk_operator.reconcile.observed import (
    Observed,
    format_time,
    node_lost_since,
    view_pods,
    view_workloads,
)
from glinthawk_operator.reconcile.plan import plan
from glinthawk_operator.reconcile.status import (
    Outcome,
    build_status,
    describe_decision,
    diff_status,
    dump_status,
    read_status,
)
from glinthawk_operator.references import find_missing
from glinthawk_operator.settings import Settings

log = get_logger("reconciler")

UNWATCHED_EVERY_S = 600.0
"""How often Secrets and ServiceMonitors are looked at: a watch would bring everybody's."""

MISSING_EVERY_S = 30.0
IDLE_POLL_S = 30.0


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


class Reconciler:
    """See the module.

    Args:
        cluster, index: what is there.
        settings, metrics: of the process.
        clock: seconds since 1970.
        random_bytes: for secrets.
    """

    def __init__(
        self,
        cluster: Cluster,
        index: ObjectIndex,
        settings: Settings,
        metrics: OperatorMetrics,
        *,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._cluster = cluster
        self._index = index
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._random_bytes = random_bytes
        self._memories: dict[ResourceKey, Memory] = {}
        self._monitors: tuple[bool, float] | None = None
        self._executor = Executor(
            cluster,
            index,
            reporter=settings.pod_name,
            observe=lambda kind: metrics.actions.labels(kind).inc(),
            clock=clock,
        )

    def reconcile(self, key: ResourceKey) -> float | None:
        """Bring one resource nearer to what it wants; return when to come again, None if gone.

        Raises:
            ApiError: the API server fails for the moment.
        """
        owned = self._index.read(key)
        body = owned.resource
        if body is None or body["metadata"].get("deletionTimestamp") is not None:
            self._forget(key, owned)
            return None
        try:
            spec = GlinthawkDeploymentSpec.model_validate(body["spec"])
        except ValidationError as error:
            self._say_invalid(body, str(error))
            return IDLE_POLL_S
        memory = self._memories.setdefault(key, Memory())
        context = self._context(body, spec)
        self._look_at_unwatched(key, context, memory)
        return self._turn(key, context, body, memory)

    def _turn(self, key: ResourceKey, context: Context, body: Any, memory: Memory) -> float:
        owned = self._index.read(key)
        spec, status = context.spec, read_status(body)
        gateway = self._gateway(context, owned)
        inspection, silence = self._inspect(gateway, owned)
        observed = self._observe(context, owned, inspection, memory, body)
        rules = build_rules(spec)
        before = _wanted_before(status, observed, rules)
        decision = self._decide(spec, rules, before, observed, memory)
        made = plan(
            desired(context),
            observed,
            tuple(build_secrets(context, self._random_bytes)),
            wanted_workers=decision.replicas,
            drain_timeout_s=float(spec.memory_tier.scaling.scale_down.drain_timeout_seconds),
        )
        target = Target(context.name, context.namespace, context.uid, owned, gateway, memory.marks)
        refused = self._executor.run(made.actions, target)
        subject = Subject(
            spec,
            body["metadata"]["generation"],
            observed,
            made,
            rules,
            decision.replicas,
            silence,
            refused,
        )
        has_changed = status.memory_tier is not None and decision.replicas != before
        outcome = Outcome(
            context.name,
            endpoint(context),
            decision,
            before if has_changed else None,
            memory.figures_written_s,
        )
        said = self._say(subject, outcome, status, body, target)
        self._measure(context, subject, decision, said.conditions)
        return self._settings.poll_seconds

    # --- observe

    def _context(self, body: Any, spec: GlinthawkDeploymentSpec) -> Context:
        settings, metadata = self._settings, body["metadata"]
        return Context(
            metadata["name"],
            metadata["namespace"],
            metadata["uid"],
            spec,
            Images(settings.gateway_image, settings.stage_image, settings.attention_image),
            monitors_known=self._knows_monitors(),
            operator_namespace=settings.pod_namespace,
        )

    def _knows_monitors(self) -> bool:
        now_s = self._clock()
        if self._monitors is None or now_s - self._monitors[1] > UNWATCHED_EVERY_S:
            self._monitors = (self._cluster.knows("ServiceMonitor"), now_s)
        return self._monitors[0]

    def _look_at_unwatched(self, key: ResourceKey, context: Context, memory: Memory) -> None:
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

    def _gateway(self, context: Context, owned: OwnedObjects) -> GatewayClient | None:
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

    def _inspect(
        self, gateway: GatewayClient | None, owned: OwnedObjects
    ) -> tuple[Inspection | None, str | None]:
        """Ask the gateway how it stands, unless no pod of it runs."""
        pods = [pod for pod in view_pods(owned.of_kind("Pod")) if pod.component == GATEWAY]
        if gateway is None or not any(pod.phase == "Running" for pod in pods):
            return None, "its pod does not run"
        try:
            return gateway.inspect(), None
        except GatewayError as error:
            self._metrics.errors.labels(type(error).__name__).inc()
            return None, str(error)

    def _observe(
        self,
        context: Context,
        owned: OwnedObjects,
        inspection: Inspection | None,
        memory: Memory,
        body: Any,
    ) -> Observed:
        now_s = self._clock()
        pods = view_pods(owned.of_kind("Pod"))
        objects = dict(owned.objects)
        for pod in pods:
            if pod.component == STAGE and not pod.is_scheduled and not pod.is_ending:
                self._add_cache(context, pod.name, objects)
        return Observed(
            now_s=now_s,
            objects=objects,
            pods=pods,
            workloads=view_workloads(objects),
            lost_nodes=self._lost_nodes(now_s, {pod.node for pod in pods}, objects),
            inspection=inspection,
            missing=self._missing(context, memory, body["metadata"]["generation"]),
        )

    def _add_cache(self, context: Context, pod: str, objects: dict[tuple[str, str], Any]) -> None:
        name = f"cache-{pod}"
        try:
            body = self._cluster.get("PersistentVolumeClaim", name, context.namespace)
            objects["PersistentVolumeClaim", name] = body
        except ApiNotFound:
            return

    def _lost_nodes(
        self, now_s: float, names: set[str | None], objects: dict[tuple[str, str], Any]
    ) -> frozenset[str]:
        """Return which nodes of our pods and caches are gone, or NotReady for long."""
        if not self._index.nodes():
            return frozenset()  # nodes may not be watched; then nothing is known of them
        for (kind, _), body in objects.items():
            if kind == "PersistentVolumeClaim":
                annotations = body["metadata"].get("annotations") or {}
                names = names | {annotations.get("volume.kubernetes.io/selected-node")}
        lost = set()
        for name in names - {None}:
            body = self._index.node(name or "")
            since_s = 0.0 if body is None else node_lost_since(body)
            if since_s is not None and now_s - since_s >= self._settings.lost_node_seconds:
                lost.add(name or "")
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

    # --- decide

    def _decide(
        self,
        spec: GlinthawkDeploymentSpec,
        rules: Rules,
        before: int,
        observed: Observed,
        memory: Memory,
    ) -> Decision:
        if spec.memory_tier.scaling.mode != "Auto":
            memory.history = History()
            return follow_replicas(rules, spec.memory_tier.replicas or rules.min_replicas)
        if observed.inspection is not None and observed.inspection.has_figures:
            memory.figures = build_figures(observed.inspection, observed.now_s)
        tier = Tier(before, observed.num_ready(ATTENTION))
        decision = decide(rules, tier, memory.figures, memory.history, now_s=observed.now_s)
        memory.history = decision.history
        return decision

    # --- say

    def _say(
        self,
        subject: Subject,
        outcome: Outcome,
        before: GlinthawkDeploymentStatus,
        body: Any,
        target: Target,
    ) -> GlinthawkDeploymentStatus:
        status = build_status(subject, outcome, before)
        patch = diff_status(body.get("status") or {}, dump_status(status))
        if not patch:
            return status
        written = self._cluster.patch_status(target.name, target.namespace, patch)
        self._index.put_resource(written)
        kv = (patch.get("memoryTier") or {}).get("kvBytes")
        if kv is not None or "throughput" in patch:
            self._memories[resource_key(written)].figures_written_s = subject.observed.now_s
        news = list(_news(before.conditions, status.conditions))
        if outcome.replicas_before is not None:
            message = f"{outcome.replicas_before} -> {describe_decision(outcome.decision)}"
            news.append(Announce("Scaled", message))
            reason = outcome.decision.reason.value
            self._metrics.decisions.labels(target.namespace, target.name, reason).inc()
        self._executor.run(news, target)
        return status

    def _say_invalid(self, body: Any, problem: str) -> None:
        metadata, status = body["metadata"], read_status(body)
        message = f"the spec is not one that this operator reads: {problem}"
        conditions = []
        for kind, answer in (("Ready", "False"), ("Degraded", "True")):
            known = find_condition(status.conditions, kind)  # type: ignore[arg-type]
            since = format_time(self._clock())
            if known is not None and known.status == answer:
                since = known.last_transition_time
            conditions.append(
                Condition.model_validate(
                    {
                        "type": kind,
                        "status": answer,
                        "observedGeneration": metadata["generation"],
                        "lastTransitionTime": since,
                        "reason": "InvalidSpec",
                        "message": message[:1000],
                    }
                )
            )
        after = replace_conditions(status, tuple(conditions), metadata["generation"])
        patch = diff_status(body.get("status") or {}, dump_status(after))
        if patch:
            written = self._cluster.patch_status(metadata["name"], metadata["namespace"], patch)
            self._index.put_resource(written)

    def _measure(
        self,
        context: Context,
        subject: Subject,
        decision: Decision,
        conditions: tuple[Condition, ...],
    ) -> None:
        labels = (context.namespace, context.name)
        metrics, observed = self._metrics, subject.observed
        metrics.wanted.labels(*labels).set(decision.replicas)
        metrics.ready_workers.labels(*labels).set(observed.num_ready(ATTENTION))
        metrics.draining.labels(*labels).set(subject.plan.scaling.num_draining)
        metrics.frozen.labels(*labels).set(decision.is_frozen)
        if decision.needed is not None and decision.figures is not None:
            metrics.needed.labels(*labels).set(decision.needed)
            metrics.demanded.labels(*labels).set(decision.figures.demanded_bytes)
        for condition in conditions:
            gauge = {"Ready": metrics.ready, "Degraded": metrics.degraded}.get(condition.type)
            if gauge is not None:
                gauge.labels(*labels).set(condition.status == "True")

    def _forget(self, key: ResourceKey, owned: OwnedObjects) -> None:
        self._memories.pop(key, None)
        for kind in ("Secret", "ServiceMonitor"):
            for body in owned.of_kind(kind):
                self._index.remove(kind, body, key)
        if owned.resource is not None:
            self._metrics.forget(key.namespace, owned.resource["metadata"]["name"])


def build_rules(spec: GlinthawkDeploymentSpec) -> Rules:
    """Return the numbers of a spec that scaling goes by."""
    tier, scaling = spec.memory_tier, spec.memory_tier.scaling
    up, down = scaling.scale_up, scaling.scale_down
    return Rules(
        min_replicas=scaling.min_replicas,
        max_replicas=max(scaling.min_replicas, scaling.max_replicas),
        capacity_per_worker_bytes=max(1, tier.kv_cache.memory_bytes),
        target_share=scaling.target_utilization / 100,
        tolerance=scaling.tolerance / 100,
        up_window_s=float(up.stabilization_window_seconds),
        down_window_s=float(down.stabilization_window_seconds),
        up=StepLimit(up.max_step_replicas, up.max_step_percent / 100, float(up.period_seconds)),
        down=StepLimit(
            down.max_step_replicas, down.max_step_percent / 100, float(down.period_seconds)
        ),
        idle_threshold=scaling.stage_idle / 100,
        busy_target=scaling.target_busy / 100,
        stale_after_s=float(scaling.stale_after_seconds),
    )


def build_figures(inspection: Inspection, now_s: float) -> Figures:
    """Return the figures that scaling goes by; the idle share only if every stage told its own."""
    shares = inspection.stage_busy_shares
    is_known = bool(shares) and len(shares) == inspection.num_stages
    return Figures(
        measured_at_s=now_s,
        used_bytes=inspection.kv_used_bytes,
        demanded_bytes=inspection.kv_demanded_bytes,
        busy_shares=tuple(
            worker.busy_share
            for worker in inspection.workers
            if worker.state == ACTIVE and worker.busy_share is not None
        ),
        stage_idle_share=1 - sum(shares) / len(shares) if is_known else None,
    )


def replace_conditions(
    status: GlinthawkDeploymentStatus, conditions: tuple[Condition, ...], generation: int
) -> GlinthawkDeploymentStatus:
    """Return a status with other conditions, about a generation."""
    return status.model_copy(update={"conditions": conditions, "observed_generation": generation})


def _wanted_before(status: GlinthawkDeploymentStatus, observed: Observed, rules: Rules) -> int:
    """Return how many workers were wanted: by the status, else the Deployment, else the least."""
    if status.memory_tier is not None and status.memory_tier.desired_replicas is not None:
        return status.memory_tier.desired_replicas
    workload = observed.workloads.get(ATTENTION)
    return rules.min_replicas if workload is None else workload.replicas


def _news(before: tuple[Condition, ...], after: tuple[Condition, ...]) -> list[Announce]:
    """Return Events for answers that changed in kind; KVPressure is for metrics."""
    news = []
    for condition in after:
        known = find_condition(before, condition.type)
        is_known = known is not None and known.status == condition.status
        if condition.type == "KVPressure" and condition.status != "True":
            continue
        if is_known and known is not None and known.reason == condition.reason:
            continue
        is_bad = (condition.type, condition.status) in (("Ready", "False"), ("Degraded", "True"))
        news.append(
            Announce(condition.reason, f"{condition.type}: {condition.message}", is_warning=is_bad)
        )
    return news
