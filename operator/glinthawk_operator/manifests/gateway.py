"""The gateway: a StatefulSet of one pod, because its volume must never have two.

Its volume holds files, batches, results and keys. Pods are replaced by the operator (OnDelete):
a rolling update would wait for ever for a pod that cannot start.
"""

from glinthawk_operator.manifests.config import TLS_FOLDER
from glinthawk_operator.manifests.context import (
    CONTROL_PORT,
    GRPC_PORT,
    HTTP_PORT,
    METRICS_PORT,
    Context,
    Manifest,
)
from glinthawk_operator.manifests.fetching import build_fetch, model_mounts, model_volumes
from glinthawk_operator.manifests.names import GATEWAY
from glinthawk_operator.manifests.pods import (
    PROBE_PERIOD_S,
    PodParts,
    build_container,
    build_resources,
    config_arguments,
    config_mounts,
    config_volumes,
)
from glinthawk_operator.manifests.stateful import build_claim, build_stateful_set

GRACE_S = 60
REQUESTS = {"cpu": "200m", "memory": "512Mi"}


def build_gateway(context: Context) -> Manifest:
    """Return the StatefulSet of the gateway."""
    storage = context.spec.gateway.storage
    claim = build_claim(context, GATEWAY, "data", storage.size, storage.storage_class_name)
    return build_stateful_set(
        context,
        GATEWAY,
        _parts(context),
        replicas=1,
        claims=[claim],
        when_deleted=storage.when_deleted,
        when_scaled="Retain",
    )


def _parts(context: Context) -> PodParts:
    gateway = context.spec.gateway
    data = {"name": "data", "mountPath": "/data"}
    mounts = [
        *config_mounts(),
        data,
        {"name": "keys", "mountPath": "/etc/glinthawk-keys", "readOnly": True},
        *model_mounts(context),
    ]
    volumes = [
        *config_volumes(context, GATEWAY),
        {
            "name": "keys",
            "secret": {
                "secretName": context.keys_secret_name,
                "defaultMode": 0o440,
                "items": [{"key": "keys", "path": "keys"}],
            },
        },
        *model_volumes(context),
    ]
    if gateway.tls_secret is not None:
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
        tls = {"secretName": gateway.tls_secret, "defaultMode": 0o440}
        volumes.append({"name": "tls", "secret": tls})
    resources = build_resources(gateway, REQUESTS)
    container = build_container(
        context,
        GATEWAY,
        arguments=["gateway", *config_arguments()],
        resources=resources,
        mounts=mounts,
    )
    fetch = build_fetch(context, GATEWAY, resources=resources, mounts=[data])
    return PodParts(
        {**container, "ports": _ports(), **_probes(context)},
        volumes,
        GRACE_S,
        init_containers=fetch,
    )


def _ports() -> list[Manifest]:
    return [
        {"name": "http", "containerPort": HTTP_PORT},
        {"name": "grpc", "containerPort": GRPC_PORT},
        {"name": "control", "containerPort": CONTROL_PORT},
        {"name": "metrics", "containerPort": METRICS_PORT},
    ]


def _probes(context: Context) -> Manifest:
    """Alive: HTTP answers, which it does before any stage is there. Ready: the tiers are whole."""
    scheme = "HTTP" if context.spec.gateway.tls_secret is None else "HTTPS"
    alive = {
        "httpGet": {"path": "/health", "port": HTTP_PORT, "scheme": scheme},
        "timeoutSeconds": 10,
    }
    ready = {"grpc": {"port": GRPC_PORT}, "timeoutSeconds": 10}
    start_s = context.spec.progress_deadline_seconds
    return {
        "startupProbe": {**alive, "periodSeconds": 2, "failureThreshold": max(30, start_s // 2)},
        "livenessProbe": {**alive, "periodSeconds": PROBE_PERIOD_S, "failureThreshold": 12},
        "readinessProbe": {**ready, "periodSeconds": 2, "failureThreshold": 3},
    }
