"""The check pod: before anything that serves is touched, a new image must start and say what it is.

It asks for no GPU, prints version and protocol as its termination message, and ends.
"""

from glinthawk_operator.manifests.context import Context, Manifest, drop_none
from glinthawk_operator.manifests.names import short_hash
from glinthawk_operator.manifests.pods import (
    POD_SECURITY,
    SECURITY,
    build_toleration,
)

CHECK = "check"
DEADLINE_S = 900
"""For the node to fetch the image, too."""

_RESOURCES = {
    "requests": {"cpu": "50m", "memory": "128Mi"},
    "limits": {"cpu": "1", "memory": "512Mi"},
}


def check_name(context: Context, image: str) -> str:
    """Return the name of the pod that checks an image."""
    return context.child(f"{CHECK}-{short_hash(image)}")


def build_check(context: Context, component: str) -> Manifest:
    """Return the pod that checks a component's image, on nodes where it would run."""
    tier = context.tier(component)
    image = context.image(component)
    container = {
        "name": CHECK,
        "image": image,
        "imagePullPolicy": tier.image_pull_policy,
        "command": ["glinthawk", "version", "--protocol", "--output", "/dev/termination-log"],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "glinthawk"}],
        "resources": _RESOURCES,
        "securityContext": SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": context.metadata(check_name(context, image), CHECK),
        "spec": drop_none(
            {
                "restartPolicy": "Never",
                "activeDeadlineSeconds": DEADLINE_S,
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": POD_SECURITY,
                "imagePullSecrets": [{"name": name} for name in context.spec.image_pull_secrets]
                or None,
                "nodeSelector": dict(tier.node_selector) or None,
                "tolerations": [*map(build_toleration, tier.tolerations)] or None,
                "containers": [container],
                "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
            }
        ),
    }
