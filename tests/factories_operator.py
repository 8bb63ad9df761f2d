"""Makes what tests of the operator's pure rooms need: contexts, pods, workloads, observations."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.gateway_client import GatewayWorker, Inspection
from glinthawk_operator.manifests.build import Desired, desired
from glinthawk_operator.manifests.context import Context, Images
from glinthawk_operator.reconcile.observed import Observed, PodView, view_workloads

GIB = 1 << 30
NOW_S = 1_800_000_000.0


def make_spec(**parts: Any) -> GlinthawkDeploymentSpec:
    """Return a small spec; parts are merged into it, a level deep."""
    spec: dict[str, Any] = {
        "model": {"source": "hf://acme/smol"},
        "gpuTier": {"stages": 2, "device": "cpu"},
        "memoryTier": {
            "kvCache": {"memory": "1Gi"},
            "scaling": {"minReplicas": 1, "maxReplicas": 3},
        },
    }
    for name, part in parts.items():
        known = spec.get(name)
        spec[name] = {**known, **part} if isinstance(known, dict) else part
    return GlinthawkDeploymentSpec.model_validate(spec)


def make_context(name: str = "demo", **parts: Any) -> Context:
    """Return the context of a resource."""
    images = Images("gateway:1", "stage:1", "attention:1")
    return Context(name, "ns", f"uid-{name}", make_spec(**parts), images)


def in_cluster(manifest: Mapping[str, Any], **status: Any) -> dict[str, Any]:
    """Return a manifest as the API server would give it back."""
    metadata = {
        **manifest["metadata"],
        "uid": f"uid-{manifest['kind']}-{manifest['metadata']['name']}",
        "resourceVersion": "1",
        "generation": 1,
    }
    return {**manifest, "metadata": metadata, "status": {"observedGeneration": 1, **status}}


def all_objects(wanted: Desired, *, workers: int = 1) -> dict[tuple[str, str], dict[str, Any]]:
    """Return everything that is wanted as if it were there."""
    objects = {}
    parts = [one.config_map for one in wanted.components]
    parts += [one.workload for one in wanted.components]
    for manifest in [*wanted.supporting, *parts]:
        body = in_cluster(manifest)
        if manifest["kind"] == "Deployment":
            body["spec"] = {**body["spec"], "replicas": workers}
        objects[manifest["kind"], manifest["metadata"]["name"]] = body
    return objects


def make_pod(name: str, component: str = "attention", **fields: Any) -> PodView:
    """Return a pod that is ready."""
    pod = PodView(name, f"uid-{name}", component, phase="Running", is_ready=True, node="cpu-1")
    return replace(pod, **fields)


def all_pods(wanted: Desired, *, workers: int = 1) -> list[PodView]:
    """Return the pods of everything that is wanted."""
    hashes = {one.component: one.template_hash for one in wanted.components}
    names = [("gateway", "demo-gateway-0"), ("stage", "demo-stage-0"), ("stage", "demo-stage-1")]
    names += [("attention", f"w{index}") for index in range(workers)]
    return [make_pod(name, kind, template_hash=hashes[kind]) for kind, name in names]


def make_inspection(workers: Mapping[str, str], **fields: Any) -> Inspection:
    """Return what a gateway says: workers by name and state."""
    return replace(
        Inspection(
            is_ready=True,
            protocol_version=1,
            num_stages=2,
            num_registered_stages=2,
            workers=tuple(GatewayWorker(name, state) for name, state in workers.items()),
            kv_capacity_bytes=len(workers) * GIB,
        ),
        **fields,
    )


def make_observed(
    wanted: Desired | None = None,
    *,
    workers: int = 1,
    pods: Iterable[PodView] | None = None,
    states: Mapping[str, str] | None = None,
    **fields: Any,
) -> Observed:
    """Return a world in which everything that is wanted is there."""
    wanted = wanted or desired(make_context())
    objects = all_objects(wanted, workers=workers)
    if states is None:
        states = {f"w{index}": "active" for index in range(workers)}
    return replace(
        Observed(
            NOW_S,
            objects,
            tuple(all_pods(wanted, workers=workers) if pods is None else pods),
            view_workloads(objects),
            inspection=make_inspection(states),
        ),
        **fields,
    )
