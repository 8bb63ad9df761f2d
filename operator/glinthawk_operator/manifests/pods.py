"""What the pods of all components have in common: security, probes, environment, placement.

Pods meet the restricted Pod Security Standard, write only to volumes, and hold no token of the API
server. Links to Services are off: a Service called `glinthawk` would set GLINTHAWK_PORT.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glinthawk_operator.crd.spec import PodFields, TolerationSpec
from glinthawk_operator.manifests.applied import hash_manifest
from glinthawk_operator.manifests.config import CONFIG_FILE, CONFIG_FOLDER, hash_settings
from glinthawk_operator.manifests.context import (
    MEMBER_DATA_PORT,
    MEMBER_GRPC_PORT,
    METRICS_PORT,
    Context,
    Manifest,
    drop_none,
)
from glinthawk_operator.manifests.names import (
    CONFIG_ANNOTATION,
    TEMPLATE_ANNOTATION,
    object_labels,
)

USER_ID = 65532
PROBE_PERIOD_S = 10

SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
}

POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True)
class PodParts:
    """What a component adds: its containers, volumes, and how long it may take to end."""

    container: Manifest
    volumes: Sequence[Manifest]
    grace_s: int
    init_containers: Sequence[Manifest] = ()
    tolerations: Sequence[Manifest] = ()


def build_template(context: Context, component: str, parts: PodParts) -> Manifest:
    """Return a pod template; its annotations say which template and settings it is of."""
    tier = context.tier(component)
    spec = drop_none(
        {
            "serviceAccountName": context.child(component),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": parts.grace_s,
            "securityContext": POD_SECURITY,
            "imagePullSecrets": [{"name": name} for name in context.spec.image_pull_secrets]
            or None,
            "nodeSelector": dict(tier.node_selector) or None,
            "tolerations": [*map(build_toleration, tier.tolerations), *parts.tolerations] or None,
            "topologySpreadConstraints": _spread(context, component) or None,
            "runtimeClassName": tier.runtime_class_name,
            "priorityClassName": tier.priority_class_name,
            "initContainers": list(parts.init_containers) or None,
            "containers": [parts.container],
            "volumes": list(parts.volumes),
        }
    )
    labels = {**tier.pod_labels, **object_labels(context.name, component)}
    annotations = {
        **tier.pod_annotations,
        CONFIG_ANNOTATION: hash_settings(context, component),
    }
    template: Manifest = {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": spec,
    }
    template["metadata"]["annotations"] = {
        **annotations,
        TEMPLATE_ANNOTATION: hash_manifest(template),
    }
    return template


def build_container(
    context: Context,
    component: str,
    *,
    arguments: Sequence[str],
    resources: Manifest,
    mounts: Sequence[Manifest],
    environment: Sequence[Manifest] = (),
) -> Manifest:
    """Return a container that runs `glinthawk` with arguments; ports and probes are the caller's.

    What it says last before it fails becomes its termination message.
    """
    tier = context.tier(component)
    users = [{"name": one.name, "value": one.value} for one in tier.env]
    return {
        "name": component,
        "image": context.image(component),
        "imagePullPolicy": tier.image_pull_policy,
        "command": ["glinthawk", *arguments],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "USER", "value": "glinthawk"},
            *environment,
            *users,
        ],
        "resources": resources,
        "securityContext": SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts],
    }


def member_environment() -> list[Manifest]:
    """Return who a member is, and where others reach it."""
    return [
        {"name": "GLINTHAWK_NAME", "valueFrom": _field("metadata.name")},
        {"name": "GLINTHAWK_ADVERTISE_HOST", "valueFrom": _field("status.podIP")},
    ]


def stage_environment() -> list[Manifest]:
    """Return which stage a pod is: its ordinal."""
    field = "metadata.labels['apps.kubernetes.io/pod-index']"
    return [{"name": "GLINTHAWK_STAGE", "valueFrom": _field(field)}]


def member_ports() -> list[Manifest]:
    """Return the ports of a stage or worker."""
    return [
        {"name": "grpc", "containerPort": MEMBER_GRPC_PORT},
        {"name": "data", "containerPort": MEMBER_DATA_PORT},
        {"name": "metrics", "containerPort": METRICS_PORT},
    ]


def member_probes(start_s: int) -> Manifest:
    """Return probes on grpc.health.v1. start_s: how long it may take to come up.

    The patience of the liveness probe is for a machine whose cores all compute.
    """
    probe = {"grpc": {"port": MEMBER_GRPC_PORT}, "timeoutSeconds": 10}
    return {
        "startupProbe": {**probe, "periodSeconds": 2, "failureThreshold": max(30, start_s // 2)},
        "readinessProbe": {**probe, "periodSeconds": PROBE_PERIOD_S, "failureThreshold": 3},
        "livenessProbe": {**probe, "periodSeconds": PROBE_PERIOD_S, "failureThreshold": 12},
    }


def build_toleration(toleration: TolerationSpec) -> Manifest:
    """Return a toleration as Kubernetes has it."""
    return drop_none(
        {
            "key": toleration.key,
            "operator": toleration.operator,
            "value": toleration.value,
            "effect": toleration.effect,
            "tolerationSeconds": toleration.toleration_seconds,
        }
    )


def lost_node_tolerations(tier: PodFields, seconds: int) -> list[Manifest]:
    """Return for how long pods stay on a node that is lost, unless the spec says so itself."""
    keys = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    said = {toleration.key for toleration in tier.tolerations}
    return [
        {
            "key": key,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }
        for key in keys
        if key not in said
    ]


def build_resources(
    tier: PodFields, requests: Mapping[str, str], limits: Mapping[str, str] | None = None
) -> Manifest:
    """Return resources: defaults, then the spec's, then `limits`, which are also requested."""
    fixed = dict(limits or {})
    asked = {**requests, **tier.resources.requests, **fixed}
    most = {**tier.resources.limits, **fixed}
    return {"requests": asked, **({"limits": most} if most else {})}


def config_volumes(context: Context, component: str) -> list[Manifest]:
    """Return the volumes of settings, secret and scratch space."""
    return [
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "config", "configMap": {"name": context.child(component)}},
        {
            "name": "secret",
            "secret": {"secretName": context.secret_name, "defaultMode": 0o440},
        },
    ]


def config_mounts() -> list[Manifest]:
    """Return the mounts of `config_volumes`, but that of scratch space."""
    return [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "secret", "mountPath": "/etc/glinthawk-secret", "readOnly": True},
    ]


def config_arguments() -> list[str]:
    """Return where a process finds its settings."""
    return ["--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}"]


def _spread(context: Context, component: str) -> list[Manifest]:
    return [
        {
            "topologyKey": one.topology_key,
            "maxSkew": one.max_skew,
            "whenUnsatisfiable": one.when_unsatisfiable,
            "labelSelector": {"matchLabels": context.selector(component)},
        }
        for one in context.tier(component).topology_spread
    ]


def _field(path: str) -> dict[str, Any]:
    return {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
