"""What scaling goes by: the numbers of a spec, and the figures of a gateway."""

from glinthawk_operator.autoscaler import Figures, Rules, StepLimit
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.gateway_client import ACTIVE, Inspection


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
