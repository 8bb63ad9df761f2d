"""One reconcile of one resource: observe, decide, plan, do, say.

Everything that counts is in the cluster; what is remembered here between turns only saves writes
and carries the autoscaler's history. Any number of resources may be reconciled at a time, each by
one thread.
"""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from glinthawk_operator.autoscaler import (
    Decision,
    History,
    Rules,
    Tier,
    decide,
    follow_replicas,
)
from glinthawk_operator.cluster import Cluster
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.crd.status import Condition, GlinthawkDeploymentStatus, find_condition
from glinthawk_operator.executor import Executor, Target
from glinthawk_operator.index import ObjectIndex, OwnedObjects, ResourceKey, resource_key
from glinthawk_operator.logs import get_logger
from glinthawk_operator.manifests.build import desired
from glinthawk_operator.manifests.context import Context, Images
from glinthawk_operator.manifests.names import ATTENTION
from glinthawk_operator.manifests.secrets import build_secrets
from glinthawk_operator.manifests.services import endpoint
from glinthawk_operator.metrics import OperatorMetrics
from glinthawk_operator.observer import Memory, Observer
from glinthawk_operator.reconcile.actions import Announce
from glinthawk_operator.reconcile.conditions import Subject
from glinthawk_operator.reconcile.news import find_news
from glinthawk_operator.reconcile.observed import (
    Observed,
    format_time,
)
from glinthawk_operator.reconcile.plan import plan
from glinthawk_operator.reconcile.rules import build_figures, build_rules
from glinthawk_operator.reconcile.status import (
    Outcome,
    build_status,
    describe_decision,
    diff_status,
    dump_status,
    read_status,
)
from glinthawk_operator.settings import Settings

log = get_logger("reconciler")

IDLE_POLL_S = 30.0


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
        self._observer = Observer(cluster, index, settings, metrics, clock=clock)
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
            # A definition of a later release may have filled in fields that are not known here.
            spec = GlinthawkDeploymentSpec.model_validate(body["spec"], extra="ignore")
        except ValidationError as error:
            self._say_invalid(body, str(error))
            return IDLE_POLL_S
        memory = self._memories.setdefault(key, Memory())
        context = self._context(body, spec)
        self._observer.look_at_unwatched(key, context, memory)
        return self._turn(key, context, body, memory)

    def _turn(self, key: ResourceKey, context: Context, body: Any, memory: Memory) -> float:
        owned = self._index.read(key)
        spec, status = context.spec, read_status(body)
        gateway = self._observer.gateway(context, owned)
        inspection, silence = self._observer.inspect(gateway, owned, memory)
        observed = self._observer.observe(context, owned, inspection, memory, body)
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
            monitors_known=self._observer.knows_monitors(),
            operator_namespace=settings.pod_namespace,
        )

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
        news = list(find_news(before.conditions, status.conditions))
        if outcome.replicas_before is not None:
            message = f"{outcome.replicas_before} -> {describe_decision(outcome.decision)}"
            news.append(Announce("Scaled", message, at_s=subject.observed.now_s))
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
