"""Services: one for users, and a headless one for each component, where peers and Prometheus find
the pods."""

from glinthawk_operator.manifests.context import (
    CONTROL_PORT,
    GRPC_PORT,
    HTTP_PORT,
    MEMBER_DATA_PORT,
    MEMBER_GRPC_PORT,
    METRICS_PORT,
    Context,
    Manifest,
    drop_none,
)
from glinthawk_operator.manifests.names import ATTENTION, COMPONENTS, GATEWAY, STAGE

_PORTS = {
    GATEWAY: {
        "http": HTTP_PORT,
        "grpc": GRPC_PORT,
        "control": CONTROL_PORT,
        "metrics": METRICS_PORT,
    },
    STAGE: {"grpc": MEMBER_GRPC_PORT, "data": MEMBER_DATA_PORT, "metrics": METRICS_PORT},
    ATTENTION: {"grpc": MEMBER_GRPC_PORT, "data": MEMBER_DATA_PORT, "metrics": METRICS_PORT},
}


def build_services(context: Context) -> list[Manifest]:
    """Return all Services of a resource."""
    return [build_api_service(context), *(_build_peers(context, one) for one in COMPONENTS)]


def build_api_service(context: Context) -> Manifest:
    """Return the Service by which users reach the gateway; it has the resource's name."""
    service = context.spec.gateway.service
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": context.metadata(context.child(), GATEWAY, service.annotations),
        "spec": drop_none(
            {
                "type": service.type,
                "selector": context.selector(GATEWAY),
                "ports": [
                    _port("http", service.port),
                    _port("grpc", service.grpc_port),
                ],
                "loadBalancerClass": service.load_balancer_class,
                "loadBalancerSourceRanges": list(service.load_balancer_source_ranges) or None,
            }
        ),
    }


def endpoint(context: Context) -> str:
    """Return the URL of the API within the cluster."""
    scheme = "http" if context.spec.gateway.tls_secret is None else "https"
    port = context.spec.gateway.service.port
    return f"{scheme}://{context.child()}.{context.namespace}.svc:{port}"


def _build_peers(context: Context, component: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": context.metadata(context.peers_service(component), component),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            # A gateway is ready once its tiers are whole, and they must find it before.
            "publishNotReadyAddresses": True,
            "selector": context.selector(component),
            "ports": [_port(name, number) for name, number in _PORTS[component].items()],
        },
    }


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}
