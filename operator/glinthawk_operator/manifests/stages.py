"""The GPU tier: a StatefulSet, one pod a stage by ordinal, each with a cache of its own.

All come up and go at once (Parallel, OnDelete): a line of stages works whole or not at all, so
replacing one by one would only load the model as often as there are stages.
"""

from glinthawk_operator.manifests.context import Context, Manifest
from glinthawk_operator.manifests.fetching import build_fetch, model_mounts, model_volumes
from glinthawk_operator.manifests.names import STAGE
from glinthawk_operator.manifests.pods import (
    PodParts,
    build_container,
    build_resources,
    config_arguments,
    config_mounts,
    config_volumes,
    member_environment,
    member_ports,
    member_probes,
    stage_environment,
)
from glinthawk_operator.manifests.stateful import build_claim, build_stateful_set

GRACE_S = 60
REQUESTS = {"cpu": "500m", "memory": "1Gi"}


def build_stages(context: Context) -> Manifest:
    """Return the StatefulSet of the stages."""
    cache = context.spec.model.cache
    claims = []
    if context.spec.model.hub_id is not None:
        claims = [build_claim(context, STAGE, "cache", cache.size, cache.storage_class_name)]
    return build_stateful_set(
        context,
        STAGE,
        _parts(context),
        replicas=context.spec.gpu_tier.stages,
        claims=claims,
        when_deleted=cache.when_deleted,
        when_scaled="Delete",
    )


def _parts(context: Context) -> PodParts:
    tier = context.spec.gpu_tier
    has_cache = context.spec.model.hub_id is not None
    cache = [{"name": "cache", "mountPath": "/cache"}] if has_cache else []
    gpus = {} if tier.device == "cpu" else {tier.gpu_resource: "1"}
    container = build_container(
        context,
        STAGE,
        arguments=["stage", *config_arguments()],
        resources=build_resources(tier, REQUESTS, gpus),
        mounts=[*config_mounts(), *cache, *model_mounts(context)],
        environment=[*member_environment(), *stage_environment()],
    )
    probes = member_probes(context.spec.progress_deadline_seconds)
    return PodParts(
        {**container, "ports": member_ports(), **probes},
        [*config_volumes(context, STAGE), *model_volumes(context)],
        GRACE_S,
        init_containers=build_fetch(
            context, STAGE, resources=build_resources(tier, REQUESTS), mounts=cache
        ),
    )
