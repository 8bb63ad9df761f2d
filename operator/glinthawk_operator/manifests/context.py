"""What manifests are built from, and what all of them have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec, PodFields
from glinthawk_operator.manifests.names import (
    API_VERSION,
    ATTENTION,
    GATEWAY,
    KIND,
    STAGE,
    child_name,
    object_labels,
    selector_labels,
    short_hash,
)

Manifest = dict[str, Any]

HTTP_PORT = 8000
GRPC_PORT = 7070
CONTROL_PORT = 7071
MEMBER_GRPC_PORT = 7072
MEMBER_DATA_PORT = 7073
METRICS_PORT = 9090
"""Ports of the containers; what a Service shows may be another."""


@dataclass(frozen=True)
class Images:
    """Images of the operator's own release, where a spec names none."""

    gateway: str
    stage: str
    attention: str


@dataclass(frozen=True)
class Context:
    """One resource, and what of the cluster its manifests depend on.

    monitors_known: whether the cluster knows ServiceMonitors. operator_namespace: where the
    operator runs, for the edge to the control API; None where it runs outside.
    """

    name: str
    namespace: str
    uid: str
    spec: GlinthawkDeploymentSpec
    images: Images
    monitors_known: bool = False
    operator_namespace: str | None = None

    def child(self, suffix: str = "") -> str:
        """Return the name of a child."""
        return child_name(self.name, suffix)

    def peers_service(self, component: str) -> str:
        """Return the name of a component's headless Service.

        With a hash, for the Service of the API has the resource's own name, which may be that of
        another's component.
        """
        return self.child(f"{component}-{short_hash(self.name, 5)}")

    def selector(self, component: str) -> dict[str, str]:
        """Return the labels by which a component's pods are found."""
        return selector_labels(self.name, component)

    def tier(self, component: str) -> PodFields:
        """Return the part of the spec that describes a component's pods."""
        tiers: dict[str, PodFields] = {
            GATEWAY: self.spec.gateway,
            STAGE: self.spec.gpu_tier,
            ATTENTION: self.spec.memory_tier,
        }
        return tiers[component]

    def image(self, component: str) -> str:
        """Return the image of a component."""
        return self.tier(component).image or str(getattr(self.images, component))

    @property
    def gateway_host(self) -> str:
        """The name under which stages and workers reach the gateway."""
        return f"{self.peers_service(GATEWAY)}.{self.namespace}.svc"

    @property
    def secret_name(self) -> str:
        """The Secret with the cluster's shared secret."""
        return self.child("secret")

    @property
    def keys_secret_name(self) -> str:
        """The Secret with API keys."""
        return self.spec.gateway.api_keys_secret or self.child("api-key")

    def metadata(
        self, name: str, component: str, annotations: Mapping[str, str] | None = None
    ) -> Manifest:
        """Return the metadata of a child; it goes when the resource goes."""
        metadata: Manifest = {
            "name": name,
            "namespace": self.namespace,
            "labels": object_labels(self.name, component),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": self.name,
                    "uid": self.uid,
                    "controller": True,
                }
            ],
        }
        if annotations:
            metadata["annotations"] = dict(annotations)
        return metadata


def drop_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping without what is None."""
    return {key: value for key, value in values.items() if value is not None}
