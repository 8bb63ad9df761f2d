"""Who may disturb whom: PodDisruptionBudgets, NetworkPolicies, and who asks for metrics.

    users ---------> gateway <---registration--- stages, attention workers
    operator ------> gateway ---steps----------> stages --frames--> stages, attention workers
    Prometheus ----> all, metrics only           fetch -> hub

Each edge is one rule; there is no other connection. Check pods have none at all.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from glinthawk_operator.manifests.check import CHECK
from glinthawk_operator.manifests.context import (
    CONTROL_PORT,
    GRPC_PORT,
    HTTP_PORT,
    MEMBER_DATA_PORT,
    MEMBER_GRPC_PORT,
    METRICS_PORT,
    Context,
    Manifest,
)
from glinthawk_operator.manifests.names import ATTENTION, COMPONENTS, GATEWAY, STAGE

_MEMBER = (MEMBER_GRPC_PORT, MEMBER_DATA_PORT)
_HTTPS = 443


def build_disruption_budgets(context: Context) -> list[Manifest]:
    """Return the budgets of the tiers; the gateway has none: one of a single pod stops drains."""
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": context.metadata(context.child(component), component),
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": context.selector(component)},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
        for component in (STAGE, ATTENTION)
    ]


def build_network_policies(context: Context) -> list[Manifest]:
    """Return a policy for each component and one for check pods; none if the spec wants none."""
    if not context.spec.network_policy.enabled:
        return []
    ingress = {
        GATEWAY: [
            _rule(None, (HTTP_PORT, GRPC_PORT)),
            _rule(_operator(context), (CONTROL_PORT,), key="from"),
        ],
        STAGE: [_from(context, (GATEWAY, STAGE), _MEMBER)],
        ATTENTION: [_from(context, (STAGE,), _MEMBER)],
    }
    hub = [_rule(None, (_hub_port(context),))] if context.spec.model.hub_id is not None else []
    register = _to(context, (GATEWAY,), (GRPC_PORT,))
    egress = {
        GATEWAY: [_to(context, (STAGE,), _MEMBER), *hub],
        STAGE: [register, _to(context, (STAGE, ATTENTION), _MEMBER), *hub],
        ATTENTION: [register],
    }
    metrics = _rule(None, (METRICS_PORT,))
    return [
        *(
            _policy(context, one, [*ingress[one], metrics], [*egress[one], _NAMES])
            for one in COMPONENTS
        ),
        _policy(context, CHECK, [], []),
    ]


def _policy(
    context: Context, component: str, ingress: list[Manifest], egress: list[Manifest]
) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": context.metadata(context.child(component), component),
        "spec": {
            "podSelector": {"matchLabels": context.selector(component)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def build_monitors(context: Context) -> list[Manifest]:
    """Return the ServiceMonitor, if it is wanted and the cluster knows the kind."""
    metrics = context.spec.metrics
    if metrics.service_monitor == "Disabled" or not context.monitors_known:
        return []
    metadata = context.metadata(context.child(), GATEWAY)
    metadata["labels"] = {**metrics.labels, **metadata["labels"]}
    instance = context.selector(GATEWAY)
    del instance["app.kubernetes.io/component"]
    label = "__meta_kubernetes_pod_label_app_kubernetes_io_"
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "ServiceMonitor",
            "metadata": metadata,
            "spec": {
                # Only the headless Services have a port of this name.
                "selector": {"matchLabels": instance},
                "endpoints": [
                    {
                        "port": "metrics",
                        "interval": f"{metrics.interval_seconds}s",
                        "relabelings": [
                            {"sourceLabels": [f"{label}instance"], "targetLabel": "deployment"},
                            {"sourceLabels": [f"{label}component"], "targetLabel": "role"},
                        ],
                    }
                ],
            },
        }
    ]


_NAMES: Manifest = {
    "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
}


def _operator(context: Context) -> list[Manifest]:
    """Where the operator is. Outside of the cluster: whoever has the secret."""
    if context.operator_namespace is None:
        return []
    namespace = {"kubernetes.io/metadata.name": context.operator_namespace}
    return [{"namespaceSelector": {"matchLabels": namespace}}]


def _from(context: Context, components: Sequence[str], ports: Sequence[int]) -> Manifest:
    return _rule(_pods(context, components), ports, key="from")


def _to(context: Context, components: Sequence[str], ports: Sequence[int]) -> Manifest:
    return _rule(_pods(context, components), ports, key="to")


def _pods(context: Context, components: Sequence[str]) -> list[Manifest]:
    return [{"podSelector": {"matchLabels": context.selector(one)}} for one in components]


def _rule(peers: list[Manifest] | None, ports: Sequence[int], *, key: str = "from") -> Manifest:
    rule: Manifest = {"ports": [{"port": port, "protocol": "TCP"} for port in ports]}
    return {**rule, key: peers} if peers else rule


def _hub_port(context: Context) -> int:
    endpoint = context.spec.model.endpoint
    if endpoint is None:
        return _HTTPS
    parts = urlsplit(endpoint)
    return parts.port or (80 if parts.scheme == "http" else _HTTPS)
