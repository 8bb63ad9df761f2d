"""Objects that a spec names and users make: asked for, so that a missing one is said by name."""

from dataclasses import dataclass

from glinthawk_operator.cluster import Cluster
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.errors import ApiForbidden, ApiNotFound


@dataclass(frozen=True)
class Reference:
    """An object and the field that names it; key: that a Secret must have."""

    field: str
    kind: str
    name: str
    key: str | None = None


def list_references(spec: GlinthawkDeploymentSpec) -> list[Reference]:
    """Return what a spec names."""
    found = []
    if spec.model.claim is not None:
        claim = spec.model.claim[0]
        found.append(Reference("model.source", "PersistentVolumeClaim", claim))
    secrets = (
        ("model.credentialsSecret", spec.model.credentials_secret, "token"),
        ("gateway.apiKeysSecret", spec.gateway.api_keys_secret, "keys"),
        ("gateway.tlsSecret", spec.gateway.tls_secret, "tls.crt"),
    )
    found += [Reference(field, "Secret", name, key) for field, name, key in secrets if name]
    tiers = (
        ("gpuTier", spec.gpu_tier),
        ("memoryTier", spec.memory_tier),
        ("gateway", spec.gateway),
    )
    for field, tier in tiers:
        if tier.runtime_class_name:
            name = tier.runtime_class_name
            found.append(Reference(f"{field}.runtimeClassName", "RuntimeClass", name))
        if tier.priority_class_name:
            name = tier.priority_class_name
            found.append(Reference(f"{field}.priorityClassName", "PriorityClass", name))
    return found


def find_missing(
    cluster: Cluster, spec: GlinthawkDeploymentSpec, namespace: str
) -> tuple[str, ...]:
    """Return in words what a spec names and is not there."""
    missing = []
    for one in list_references(spec):
        is_namespaced = one.kind in ("Secret", "PersistentVolumeClaim")
        try:
            body = cluster.get(one.kind, one.name, namespace if is_namespaced else None)
        except ApiNotFound:
            missing.append(f"{one.field} names the {one.kind} {one.name}, which does not exist")
            continue
        except ApiForbidden:
            continue  # the role leaves it out; the pod will say what it lacks
        if one.key is not None and one.key not in (body.get("data") or {}):
            missing.append(f"the Secret {one.name} of {one.field} lacks the key {one.key!r}")
    return tuple(missing)
