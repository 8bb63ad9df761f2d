"""The memory tier: a Deployment of attention workers, whose replicas only scaling writes.

The manifest leaves replicas out: a field that was applied once and then is not falls back to its
default. A worker's memory is its KV arena and what the program needs beside it, asked for and
bounded alike, so that no neighbour's need evicts it.
"""

from glinthawk_operator.crd.quantity import format_bytes
from glinthawk_operator.manifests.context import Context, Manifest
from glinthawk_operator.manifests.names import ATTENTION
from glinthawk_operator.manifests.pods import (
    PodParts,
    build_container,
    build_resources,
    build_template,
    config_arguments,
    config_mounts,
    config_volumes,
    lost_node_tolerations,
    member_environment,
    member_ports,
    member_probes,
)

REQUESTS = {"cpu": "500m"}
GRACE_BEYOND_DRAIN_S = 60
LOST_NODE_S = 30


def build_attention(context: Context) -> Manifest:
    """Return the Deployment of the attention workers; see the module for its replicas."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": context.metadata(context.child(ATTENTION), ATTENTION),
        "spec": {
            "selector": {"matchLabels": context.selector(ATTENTION)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
            },
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": _deadline_s(context),
            "template": build_template(context, ATTENTION, _parts(context)),
        },
    }


def _deadline_s(context: Context) -> int:
    """A worker that is replaced drains first; that time is no lack of progress."""
    drain_s = context.spec.memory_tier.scaling.scale_down.drain_timeout_seconds
    return context.spec.progress_deadline_seconds + drain_s


def _parts(context: Context) -> PodParts:
    tier = context.spec.memory_tier
    memory = format_bytes(tier.kv_cache.memory_bytes + tier.memory_overhead_bytes)
    container = build_container(
        context,
        ATTENTION,
        arguments=["attention", *config_arguments()],
        resources=build_resources(tier, REQUESTS, {"memory": memory}),
        mounts=config_mounts(),
        environment=member_environment(),
    )
    probes = member_probes(context.spec.progress_deadline_seconds)
    return PodParts(
        {**container, "ports": member_ports(), **probes},
        config_volumes(context, ATTENTION),
        tier.scaling.scale_down.drain_timeout_seconds + GRACE_BEYOND_DRAIN_S,
        tolerations=lost_node_tolerations(tier, LOST_NODE_S),
    )
