"""How a model comes to a pod: an init container that fetches from a hub, or a mounted volume."""

from collections.abc import Sequence

from glinthawk_operator.manifests.config import CLAIM_FOLDER, FETCHED_FOLDERS, TOKEN_FILE
from glinthawk_operator.manifests.context import Context, Manifest, drop_none
from glinthawk_operator.manifests.names import STAGE
from glinthawk_operator.manifests.pods import build_container, stage_environment


def model_volumes(context: Context) -> list[Manifest]:
    """Return the volumes of the model's source: that of pvc://, or the hub's token."""
    model = context.spec.model
    if model.claim is not None:
        claim = {"claimName": model.claim[0], "readOnly": True}
        return [{"name": "model", "persistentVolumeClaim": claim}]
    if model.credentials_secret is None:
        return []
    secret = {
        "secretName": model.credentials_secret,
        "defaultMode": 0o440,
        "items": [{"key": "token", "path": "token"}],
    }
    return [{"name": "hub", "secret": secret}]


def model_mounts(context: Context) -> list[Manifest]:
    """Return the mount of pvc:// in the main container."""
    if context.spec.model.claim is None:
        return []
    return [{"name": "model", "mountPath": CLAIM_FOLDER, "readOnly": True}]


def build_fetch(
    context: Context, component: str, *, resources: Manifest, mounts: Sequence[Manifest]
) -> list[Manifest]:
    """Return the init container that fetches; none where the model is mounted.

    A stage fetches the tensors of its layers, the gateway none. mounts: of the volume it writes.
    """
    model = context.spec.model
    if model.hub_id is None:
        return []
    options: dict[str, str | None] = {
        "model": model.hub_id,
        "revision": model.revision,
        "endpoint": model.endpoint,
        "folder": FETCHED_FOLDERS[component],
        "token-file": TOKEN_FILE if model.credentials_secret else None,
        "log-level": context.spec.log_level,
        "log-format": context.spec.log_format,
    }
    environment: list[Manifest] = []
    if component == STAGE:
        tier = context.spec.gpu_tier
        options |= {
            "num-stages": str(tier.stages),
            "device-memory": str(tier.gpu_memory_bytes),
            "dtype": model.dtype,
        }
        environment = stage_environment()
    arguments = [part for key, value in drop_none(options).items() for part in (f"--{key}", value)]
    hub = [{"name": "hub", "mountPath": "/etc/glinthawk-hub", "readOnly": True}]
    container = build_container(
        context,
        component,
        arguments=["fetch", *arguments],
        resources=resources,
        mounts=[*mounts, *(hub if model.credentials_secret else [])],
        environment=environment,
    )
    return [{**container, "name": "fetch"}]
