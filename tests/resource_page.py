"""The reference of the custom resource, docs/resource.md, from its schema."""

from collections.abc import Iterator
from typing import Any

from glinthawk_operator.crd.schema import build_root_schema

Node = dict[str, Any]

HEAD = """\
# The custom resource

This page is generated from the code.

`GlinthawkDeployment`, group `glinthawk.dev`, version `v1alpha1`, short name `ghd`. The same is
said by `kubectl explain ghd.spec`. [An example](../examples/glinthawkdeployment.yaml) has all that
must be said. The API server needs version 1.30 or later.

Sizes are Kubernetes quantities such as `16Gi`; those of CPU count cores, such as `500m`. A switch
is `Auto`, `Enabled` or `Disabled`.

Who sets `memoryTier.replicas` depends on `memoryTier.scaling.mode`. In Auto the operator chooses
the number of workers, and `kubectl scale` is refused. In Manual and External `replicas` is needed;
`kubectl scale`, an HPA or KEDA may write it. A manifest that is applied again sets it again.
"""

STATUS_HEAD = "\n## status\n\nOnly the operator writes it; what is not known is left out.\n"
TABLE = "\n| field | kind | default | bounds | meaning |\n| --- | --- | --- | --- | --- |\n"
RULES_HEAD = "\nRefused, with the message:\n\n"


def render_resource() -> str:
    """Return docs/resource.md."""
    properties = build_root_schema()["properties"]
    parts = [HEAD]
    for name in ("spec", "status"):
        if name == "status":
            parts.append(STATUS_HEAD)
        for path, node in _list_parts(name, properties[name]):
            if path != "status":
                parts.append(f"\n## {path}\n\n{node['description']}\n")
            parts.append(TABLE)
            required = node.get("required", ())
            for field, one in node["properties"].items():
                parts.append(_render_field(field, one, is_required=field in required))
            rules = node.get("x-kubernetes-validations", ())
            if rules:
                parts.append(RULES_HEAD)
            parts += [f"- {rule['message']}.\n" for rule in rules]
    return "".join(parts)


def _list_parts(path: str, node: Node) -> Iterator[tuple[str, Node]]:
    """Yield the objects in a schema with their path; `[]` stands for the items of a list."""
    yield path, node
    for name, one in node["properties"].items():
        if "properties" in one:
            yield from _list_parts(f"{path}.{name}", one)
        elif "properties" in one.get("items", {}):
            yield from _list_parts(f"{path}.{name}[]", one["items"])


def _render_field(name: str, node: Node, *, is_required: bool) -> str:
    default = "required" if is_required else _render_default(node)
    text = node["description"].replace("|", "\\|")
    return f"| `{name}` | {_render_kind(node)} | {default} | {_render_bounds(node)} | {text} |\n"


def _render_kind(node: Node) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if node["type"] == "array":
        return f"list of {_render_kind(node['items'])}"
    if "additionalProperties" in node:
        return f"map to {_render_kind(node['additionalProperties'])}"
    return str(node["type"])


def _render_default(node: Node) -> str:
    if "properties" in node:
        return "as below"
    if "default" not in node:
        return "none"
    if isinstance(node["default"], list):
        return "see meaning"
    value = node["default"]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "empty"


def _render_bounds(node: Node) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None:
        return f"from {low:,}" if high is None else f"{low:,} to {high:,}"
    for key, noun in (("maxItems", "items"), ("maxProperties", "entries")):
        if key in node:
            return f"at most {node[key]:,} {noun}"
    if "maxLength" in node and node.get("type") == "string":
        return f"at most {node['maxLength']:,} characters"
    return ""
