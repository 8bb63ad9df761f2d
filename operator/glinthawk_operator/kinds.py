"""The kinds of objects that the operator deals with, and where the API server keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass

from glinthawk_operator.manifests.names import GROUP, KIND, PLURAL, VERSION


@dataclass(frozen=True)
class Kind:
    """A kind of object, and where the API server keeps it."""

    group: str
    version: str
    plural: str
    is_namespaced: bool = True

    @property
    def api_version(self) -> str:
        """Group and version as manifests have them."""
        return f"{self.group}/{self.version}" if self.group else self.version


KINDS: Mapping[str, Kind] = {
    KIND: Kind(GROUP, VERSION, PLURAL),
    "ConfigMap": Kind("", "v1", "configmaps"),
    "Deployment": Kind("apps", "v1", "deployments"),
    "Event": Kind("events.k8s.io", "v1", "events"),
    "Lease": Kind("coordination.k8s.io", "v1", "leases"),
    "NetworkPolicy": Kind("networking.k8s.io", "v1", "networkpolicies"),
    "Node": Kind("", "v1", "nodes", is_namespaced=False),
    "PersistentVolume": Kind("", "v1", "persistentvolumes", is_namespaced=False),
    "PersistentVolumeClaim": Kind("", "v1", "persistentvolumeclaims"),
    "Pod": Kind("", "v1", "pods"),
    "PodDisruptionBudget": Kind("policy", "v1", "poddisruptionbudgets"),
    "PriorityClass": Kind("scheduling.k8s.io", "v1", "priorityclasses", is_namespaced=False),
    "RuntimeClass": Kind("node.k8s.io", "v1", "runtimeclasses", is_namespaced=False),
    "Secret": Kind("", "v1", "secrets"),
    "Service": Kind("", "v1", "services"),
    "ServiceAccount": Kind("", "v1", "serviceaccounts"),
    "ServiceMonitor": Kind("monitoring.coreos.com", "v1", "servicemonitors"),
    "StatefulSet": Kind("apps", "v1", "statefulsets"),
}

OWNED_KINDS = (
    *("StatefulSet", "Deployment", "Pod", "Service", "ConfigMap", "ServiceAccount"),
    *("PodDisruptionBudget", "NetworkPolicy"),
)
"""Kinds of children that are watched. Secrets are not: a watch would bring everybody's."""
