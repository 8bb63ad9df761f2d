"""Tells whether an object in the cluster is what was last wanted, without asking the API server.

A child carries the hash of the manifest that was applied. If that is the wanted one, and all that
the manifest says still stands in the object, there is nothing to write: at rest, nothing is.
"""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from glinthawk_operator.crd.quantity import QuantityError, parse_quantity
from glinthawk_operator.manifests.names import APPLIED_ANNOTATION

_NAMED_LISTS = ("name", "mountPath", "ip", "key", "type")


def hash_manifest(manifest: Mapping[str, Any], length: int = 16) -> str:
    """Return the first hexadecimal digits of the SHA-256 of a manifest in canonical JSON."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def stamp(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest that carries its own hash."""
    stamped = deepcopy(dict(manifest))
    annotations = stamped["metadata"].setdefault("annotations", {})
    annotations[APPLIED_ANNOTATION] = hash_manifest(manifest)
    return stamped


def is_applied(stamped: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Tell whether a stamped manifest stands in the cluster as it was applied."""
    return live is not None and holds(live, stamped)


def holds(live: Any, wanted: Any) -> bool:
    """Tell whether `live` says all that `wanted` says; it may say more.

    Numbers may be written in another way, as the API server does with quantities. Lists whose
    members have names are compared by name, others place by place.
    """
    if isinstance(wanted, Mapping):
        if not wanted:
            return live is None or isinstance(live, Mapping)
        return isinstance(live, Mapping) and all(
            holds(live.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return _list_holds(live, wanted)
    return bool(live == wanted) or _same_number(live, wanted)


def _list_holds(live: Any, wanted: list[Any] | tuple[Any, ...]) -> bool:
    if not wanted:
        return not live
    if not isinstance(live, list | tuple) or len(live) < len(wanted):
        return False
    for name in _NAMED_LISTS:
        if all(isinstance(one, Mapping) and name in one for one in wanted):
            known = {one.get(name): one for one in live if isinstance(one, Mapping)}
            if len(known) == len(live):
                return all(holds(known.get(one[name]), one) for one in wanted)
    return len(live) == len(wanted) and all(
        holds(here, there) for here, there in zip(live, wanted, strict=True)
    )


def _same_number(live: Any, wanted: Any) -> bool:
    if isinstance(live, bool) or isinstance(wanted, bool):
        return False
    if not isinstance(live, str | int) or not isinstance(wanted, str | int):
        # Zero and false are left out by the API server where that is their default.
        return live is None and wanted == 0 and isinstance(wanted, int)
    try:
        return parse_quantity(str(live)) == parse_quantity(str(wanted))
    except QuantityError:
        return False
