"""What the StatefulSets of gateway and stages have in common.

Their pods come up at once (Parallel) and are replaced by the operator (OnDelete).
"""

from collections.abc import Sequence

from glinthawk_operator.manifests.context import Context, Manifest, drop_none
from glinthawk_operator.manifests.pods import PodParts, build_template


def build_stateful_set(
    context: Context,
    component: str,
    parts: PodParts,
    *,
    replicas: int,
    claims: Sequence[Manifest],
    when_deleted: str,
    when_scaled: str,
) -> Manifest:
    """Return a StatefulSet. when_deleted, when_scaled: what becomes of its claims, Retain or
    Delete."""
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": context.metadata(context.child(component), component),
        "spec": {
            "replicas": replicas,
            "serviceName": context.peers_service(component),
            "selector": {"matchLabels": context.selector(component)},
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "persistentVolumeClaimRetentionPolicy": {
                "whenDeleted": when_deleted,
                "whenScaled": when_scaled,
            },
            "template": build_template(context, component, parts),
            **({"volumeClaimTemplates": list(claims)} if claims else {}),
        },
    }


def build_claim(
    context: Context, component: str, name: str, size: str, storage_class: str | None
) -> Manifest:
    """Return a template of volume claims."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": context.selector(component)},
        "spec": drop_none(
            {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": size}},
                "storageClassName": storage_class,
                "volumeMode": "Filesystem",
            }
        ),
    }
