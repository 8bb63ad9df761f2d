"""Resources for tests: the smallest good one, and changes of it by path."""

import copy
from typing import Any

from glinthawk_operator.crd.spec import GROUP, KIND, VERSION, GlinthawkDeploymentSpec

Document = dict[str, Any]

MINIMAL: Document = {
    "model": {"source": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
    "gpuTier": {"stages": 2},
    "memoryTier": {"kvCache": {"memory": "1Gi"}},
}
"""All that must be said."""

ABSENT = object()
"""As a value: the field is left out."""


def build_spec_document(changes: Document | None = None) -> Document:
    """Return the smallest good spec with fields set by path, such as {"gpuTier.stages": 3}."""
    spec = copy.deepcopy(MINIMAL)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".") if path else [""]
        node = spec
        for name in parents:
            node = node.setdefault(name, {})
        if value is ABSENT:
            node.pop(last, None)
        else:
            node[last] = copy.deepcopy(value)
    return spec


def build_spec(changes: Document | None = None) -> GlinthawkDeploymentSpec:
    return GlinthawkDeploymentSpec.model_validate(build_spec_document(changes))


def build_resource(
    name: str, changes: Document | None = None, *, namespace: str = "default"
) -> Document:
    """Return a whole resource, as a user would apply it."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": build_spec_document(changes),
    }
