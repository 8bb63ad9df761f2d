"""Secrets that the operator makes: once, from randomness that is given, and never again.

Whoever deletes one gets a new one; then all pods must be started anew to learn it.
"""

import hashlib
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable

from glinthawk_operator.manifests.context import Context, Manifest
from glinthawk_operator.manifests.names import GATEWAY

Random = Callable[[int], bytes]

_NUM_BYTES = 32


def build_secrets(context: Context, random: Random) -> list[Manifest]:
    """Return the Secrets that must be there: to be created where they are missing.

    random: returns so many random bytes.
    """
    secrets = [_build_cluster_secret(context, random)]
    if context.spec.gateway.api_keys_secret is None:
        secrets.append(_build_api_key(context, random))
    return secrets


def _build_cluster_secret(context: Context, random: Random) -> Manifest:
    return _secret(context, context.secret_name, {"secret": random(_NUM_BYTES).hex()})


def _build_api_key(context: Context, random: Random) -> Manifest:
    """Return one key, as users send it and as the gateway keeps it: a line `name:sha256`."""
    key = "gh-" + urlsafe_b64encode(random(_NUM_BYTES)).decode().rstrip("=")
    digest = hashlib.sha256(key.encode()).hexdigest()
    return _secret(context, context.keys_secret_name, {"key": key, "keys": f"default:{digest}\n"})


def _secret(context: Context, name: str, values: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": context.metadata(name, GATEWAY),
        "type": "Opaque",
        "data": {key: b64encode(value.encode()).decode() for key, value in values.items()},
    }
