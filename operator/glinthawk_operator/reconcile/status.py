"""The status that is written, and whether it needs writing: at rest, it does not.

Figures that always move (bytes, tokens per second) are written at most every 10 seconds, and only
when one of them changed by more than 5%. All else is written when it changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from glinthawk_operator.autoscaler import Decision
from glinthawk_operator.crd.status import (
    GlinthawkDeploymentStatus,
    GpuTierStatus,
    KvBytesStatus,
    MemoryTierStatus,
    ScalingDecisionStatus,
    ThroughputStatus,
    build_summary,
)
from glinthawk_operator.manifests.names import ATTENTION, STAGE, selector_labels
from glinthawk_operator.reconcile.conditions import Subject, build_conditions, show_bytes
from glinthawk_operator.reconcile.observed import format_time

FIGURES_EVERY_S = 10.0
FIGURES_CHANGE = 0.05


@dataclass(frozen=True)
class Outcome:
    """What the status tells beside the conditions. replicas_before: those that were wanted."""

    name: str
    endpoint: str
    decision: Decision
    replicas_before: int | None
    figures_written_s: float | None


def read_status(body: Mapping[str, Any]) -> GlinthawkDeploymentStatus:
    """Return the status of a resource; an empty one if it is none of ours."""
    try:
        return GlinthawkDeploymentStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return GlinthawkDeploymentStatus()


def build_status(
    subject: Subject, outcome: Outcome, before: GlinthawkDeploymentStatus
) -> GlinthawkDeploymentStatus:
    """Return the status as it should be."""
    observed = subject.observed
    kv, throughput = _figures(subject, outcome, before)
    gpu = GpuTierStatus(stages=len(observed.pods_of(STAGE)), ready_stages=observed.num_ready(STAGE))
    labels = selector_labels(outcome.name, ATTENTION)
    memory = MemoryTierStatus(
        replicas=len(observed.pods_of(ATTENTION)),
        desired_replicas=subject.wanted_workers,
        ready_replicas=observed.num_ready(ATTENTION),
        draining=subject.plan.scaling.num_draining,
        selector=",".join(f"{key}={value}" for key, value in labels.items()),
        kv_bytes=kv,
        last_decision=_last_decision(subject, outcome, before),
    )
    return GlinthawkDeploymentStatus(
        observed_generation=subject.generation,
        conditions=build_conditions(subject, before.conditions),
        endpoint=outcome.endpoint,
        gpu_tier=gpu,
        memory_tier=memory,
        throughput=throughput,
        summary=build_summary(num_stages=subject.spec.gpu_tier.stages, gpu=gpu, memory=memory),
    )


def dump_status(status: GlinthawkDeploymentStatus) -> dict[str, Any]:
    """Return a status as the API server keeps it."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def diff_status(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch that makes one of the other; empty if they are the same."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        known = before.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            inner = diff_status(known, value)
            if inner:
                patch[key] = inner
        elif value != known:
            patch[key] = value
    return patch


def describe_decision(decision: Decision) -> str:
    """Return why a number of workers is wanted, with the figures it was taken by."""
    if decision.figures is None or decision.needed is None:
        return f"{decision.reason.value}: {decision.replicas} workers"
    figures = decision.figures
    idle = "unknown" if figures.stage_idle_share is None else f"{figures.stage_idle_share:.0%}"
    return (
        f"{decision.reason.value}: {decision.needed:.2f} workers are needed for "
        f"{show_bytes(figures.demanded_bytes)} of KV demanded ({show_bytes(figures.used_bytes)} "
        f"used), stages idle {idle}; {decision.replicas} it is"
    )


def _last_decision(
    subject: Subject, outcome: Outcome, before: GlinthawkDeploymentStatus
) -> ScalingDecisionStatus | None:
    if outcome.replicas_before in (None, subject.wanted_workers):
        return None if before.memory_tier is None else before.memory_tier.last_decision
    return ScalingDecisionStatus(
        time=format_time(subject.observed.now_s),
        from_replicas=outcome.replicas_before or 0,
        to_replicas=subject.wanted_workers,
        reason=outcome.decision.reason.value,
        message=describe_decision(outcome.decision),
    )


def _figures(
    subject: Subject, outcome: Outcome, before: GlinthawkDeploymentStatus
) -> tuple[KvBytesStatus | None, ThroughputStatus | None]:
    old_kv = None if before.memory_tier is None else before.memory_tier.kv_bytes
    inspection = subject.observed.inspection
    if inspection is None or not inspection.has_figures:
        return old_kv, before.throughput
    kv = KvBytesStatus(
        capacity=inspection.kv_capacity_bytes,
        used=inspection.kv_used_bytes,
        demanded=inspection.kv_demanded_bytes,
    )
    throughput = ThroughputStatus(tokens_per_second=round(inspection.tokens_per_second, 1))
    if old_kv is None or before.throughput is None:
        return kv, throughput
    written_s = outcome.figures_written_s
    is_early = written_s is not None and subject.observed.now_s - written_s < FIGURES_EVERY_S
    pairs = (
        (old_kv.capacity, kv.capacity),
        (old_kv.used, kv.used),
        (old_kv.demanded, kv.demanded),
        (before.throughput.tokens_per_second, throughput.tokens_per_second),
    )
    if is_early or not any(_differs(old, new) for old, new in pairs):
        return old_kv, before.throughput
    return kv, throughput


def _differs(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(old - new) > FIGURES_CHANGE * max(abs(old), abs(new))
