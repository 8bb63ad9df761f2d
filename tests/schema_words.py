"""What a JSON schema says, in words: kinds, limits and defaults, for the reference pages."""

from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]


def describe_kind(node: Node, *, shows_null: bool = False) -> str:
    """Return the kind of a value, with links to objects. shows_null: say that it may be null."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in node:
        kinds = [describe_kind(one) for one in node["anyOf"] if shows_null or not _is_null(one)]
        return " or ".join(dict.fromkeys(kinds))
    if node.get("format") == "binary":
        return "bytes"
    kind: str = node.get("type", "any")
    if kind == "array":
        items = describe_kind(node["items"], shows_null=True)
        return f"list of ({items})" if " or " in items else f"list of {items}"
    values = node.get("additionalProperties")
    if kind == "object" and isinstance(values, dict):
        return f"map to {describe_kind(values)}"
    return kind


def describe_limits(node: Node) -> str:
    """Return the values that are allowed; empty where the kind says it all."""
    if "anyOf" in node:
        limits = [describe_limits(one) for one in node["anyOf"]]
        return "; ".join(dict.fromkeys(one for one in limits if one))
    if "const" in node:
        return f"`{_write(node['const'])}`"
    if "enum" in node:
        return ", ".join(f"`{_write(value)}`" for value in node["enum"])
    found = [_describe_range(node)]
    for noun, least, most in (
        ("characters", "minLength", "maxLength"),
        ("items", "minItems", "maxItems"),
        ("pairs", "minProperties", "maxProperties"),
    ):
        found.append(_describe_count(noun, node.get(least), node.get(most)))
    if "pattern" in node:
        found.append(f"`{node['pattern']}`")
    return ", ".join(one for one in found if one)


def describe_value(node: Node) -> str:
    """Return the default of a field that may be absent."""
    value = node.get("default")
    return "none" if value is None else f"`{_write(value)}`"


def find_references(node: Any) -> Iterator[str]:
    """Yield every reference below a node, in its order."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from find_references(value)
    elif isinstance(node, list):
        for value in node:
            yield from find_references(value)


def _is_null(node: Node) -> bool:
    return node.get("type") == "null"


def _write(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count(value: float) -> str:
    """Return a number with its thousands set apart."""
    return f"{int(value) if value == int(value) else value:,}"


def _describe_range(node: Node) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if node.get("type") == "integer" and "exclusiveMaximum" in node:
        high = node["exclusiveMaximum"] - 1
    above, below = node.get("exclusiveMinimum"), None
    if node.get("type") != "integer":
        below = node.get("exclusiveMaximum")
    words = []
    if low is not None:
        words.append(f"from {_count(low)}")
    if above is not None:
        words.append(f"above {_count(above)}")
    if high is not None:
        words.append(f"to {_count(high)}")
    if below is not None:
        words.append(f"below {_count(below)}")
    return ", ".join(words) if above is not None else " ".join(words)


def _describe_count(noun: str, least: int | None, most: int | None) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        return "not empty" if least == 1 else f"at least {least:,} {noun}"
    if least is None:
        return f"at most {most:,} {noun}"
    return f"{least:,} to {most:,} {noun}"
