"""The models as a CustomResourceDefinition: a structural OpenAPI schema with CEL rules.

pydantic writes JSON Schema 2020-12; the API server takes a part of OpenAPI 3.0 instead:

    $ref                        the part itself, in its place
    anyOf with null             the field may be left out; nothing says null
    patternProperties           additionalProperties; the rules look at keys
    additionalProperties false  left out: the API server drops what it does not know
    exclusiveMinimum: 0         minimum: 0, exclusiveMinimum: true
    title, empty defaults       left out
    a part with defaults only   default: those inside, since the API server holds the default
                                itself against the rules, before it fills anything in
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from glinthawk_operator.crd.rule import Rule
from glinthawk_operator.crd.rules import RULES
from glinthawk_operator.crd.spec import (
    GROUP,
    KIND,
    PLURAL,
    SHORT_NAME,
    VERSION,
    GlinthawkDeploymentSpec,
)
from glinthawk_operator.crd.status import GlinthawkDeploymentStatus

Schema = dict[str, Any]

CATEGORY = "glinthawk"
SCHEMA_ANNOTATION = f"{GROUP}/schema"
"""Says which definition it is: the chart compares the cluster's with its own."""

_DIGITS = 12

_KEPT = (
    *("type", "format", "description", "default", "enum", "pattern", "required"),
    *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties"),
)
_INT32_MAX = (1 << 31) - 1
_FLOAT_EXACT = 1 << 53

_RULES = {part.__name__: rules for part, rules in RULES.items()}

_COLUMNS = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Stages", "string", ".status.summary.stages", 0),
    ("Workers", "string", ".status.summary.workers", 0),
    ("KV used", "string", ".status.summary.kvUsed", 0),
    ("tok/s", "number", ".status.throughput.tokensPerSecond", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Model", "string", ".spec.model.source", 1),
    ("Scaling", "string", ".spec.memoryTier.scaling.mode", 1),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 1),
)
_COLUMN_DESCRIPTIONS = {
    "Ready": "Whether a token can be generated.",
    "Stages": "Ready stages of those wanted.",
    "Workers": "Ready attention workers of those wanted.",
    "KV used": "Share of the KV memory that sequences hold.",
    "tok/s": "Output tokens per second.",
    "Age": "Time since it was made.",
    "Model": "Where the model is.",
    "Scaling": "Who says how many workers there are.",
    "Reason": "Why it is ready or not.",
}


def build_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of GlinthawkDeployment.

    It says to Helm, and to what else reads its annotations, that it stays when its chart goes: with
    it would go every resource.
    """
    spec = _build_definition()
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "annotations": {
                SCHEMA_ANNOTATION: hashlib.sha256(text.encode()).hexdigest()[:_DIGITS],
                "helm.sh/resource-policy": "keep",
            },
        },
        "spec": spec,
    }


def _build_definition() -> Schema:
    return {
        "group": GROUP,
        "names": {
            "kind": KIND,
            "listKind": f"{KIND}List",
            "plural": PLURAL,
            "singular": KIND.lower(),
            "shortNames": [SHORT_NAME],
            "categories": [CATEGORY],
        },
        "scope": "Namespaced",
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": build_root_schema()},
                "subresources": {
                    "status": {},
                    "scale": {
                        "specReplicasPath": ".spec.memoryTier.replicas",
                        "statusReplicasPath": ".status.memoryTier.replicas",
                        "labelSelectorPath": ".status.memoryTier.selector",
                    },
                },
                "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
            }
        ],
    }


def build_root_schema() -> Schema:
    """Return the schema of the whole resource."""
    return {
        "type": "object",
        "description": "A large language model on two tiers: stages with the weights on GPUs, "
        "and attention workers with the KV cache on plain machines, scaled by its demand.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": build_schema(GlinthawkDeploymentSpec),
            "status": build_schema(GlinthawkDeploymentStatus),
        },
    }


def build_schema(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model and its parts, with their rules."""
    document = model.model_json_schema(by_alias=True)
    return _convert(document, document.get("$defs", {}))


def _column(name: str, kind: str, path: str, priority: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    column["description"] = _COLUMN_DESCRIPTIONS[name]
    if priority:
        column["priority"] = priority
    return column


def _convert(node: Schema, parts: Schema) -> Schema:
    """Return a node of JSON Schema as one of a structural schema."""
    node = _resolve(node, parts)
    if node.get("x-kubernetes-int-or-string"):
        return _without_title(node)
    schema = {key: node[key] for key in _KEPT if key in node}
    schema |= {key: node[key] for key in node if key.startswith("x-kubernetes-")}
    if schema.get("default") in (None, [], {}):
        schema.pop("default", None)
    if "default" in schema:
        schema["default"] = _without_null(schema["default"])
    if node["type"] in ("integer", "number"):
        _convert_bounds(schema, node)
    if "items" in node:
        schema["items"] = _convert(node["items"], parts)
    if "properties" in node:
        schema["properties"] = {
            name: _convert_property(one, parts) for name, one in node["properties"].items()
        }
        rules = _RULES.get(node["title"], ())
        if rules:
            schema["x-kubernetes-validations"] = [_convert_rule(rule) for rule in rules]
    values = _values_of_map(node)
    if values is not None:
        schema["additionalProperties"] = _convert(values, parts)
    return schema


def _resolve(node: Schema, parts: Schema) -> Schema:
    """Return a node without $ref, and without the alternative null; what stands beside stays."""
    beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    if "$ref" in node:
        part = parts[node["$ref"].rpartition("/")[2]]
        return _resolve({**part, **beside}, parts)
    if "anyOf" in node and not node.get("x-kubernetes-int-or-string"):
        (only,) = [one for one in node["anyOf"] if one.get("type") != "null"]
        return _resolve({**only, **beside}, parts)
    return node


def _convert_property(node: Schema, parts: Schema) -> Schema:
    """Return a property; a part that may be left out defaults to one of defaults only."""
    schema = _convert(node, parts)
    if "properties" in schema and "default" not in node and not schema.get("required"):
        schema["default"] = {
            name: one["default"] for name, one in schema["properties"].items() if "default" in one
        }
    return schema


def _values_of_map(node: Schema) -> Schema | None:
    """Return the schema of a map's values; None for what is no map."""
    if "patternProperties" in node:
        (values,) = node["patternProperties"].values()
        return dict(values)
    values = node.get("additionalProperties")
    return values if isinstance(values, dict) else None


def _convert_bounds(schema: Schema, node: Schema) -> None:
    """Write bounds as OpenAPI 3.0 does; one beyond what it holds exactly is the type's own."""
    if "exclusiveMinimum" in node:
        schema |= {"minimum": node["exclusiveMinimum"], "exclusiveMinimum": True}
    if "exclusiveMaximum" in node:
        schema |= {"maximum": node["exclusiveMaximum"], "exclusiveMaximum": True}
    high = schema.get("maximum")
    if high is not None and high > _FLOAT_EXACT:
        schema.pop("maximum")
        schema.pop("exclusiveMaximum", None)
    if node["type"] == "integer":
        schema["format"] = "int32" if high is not None and high <= _INT32_MAX else "int64"


def _without_null(value: Any) -> Any:
    """Return a default without the fields that nobody said."""
    if isinstance(value, dict):
        return {key: _without_null(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_null(one) for one in value]
    return value


def _without_title(node: Schema) -> Schema:
    return {key: value for key, value in node.items() if key != "title"}


def _convert_rule(rule: Rule) -> dict[str, str]:
    converted = {"rule": rule.holds, "message": rule.message, "reason": rule.cause}
    if rule.said is not None:
        converted["messageExpression"] = rule.said
    if rule.field is not None:
        converted["fieldPath"] = f".{rule.field}"
    return converted
