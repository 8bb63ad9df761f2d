"""The schema is one that the API server takes: https://kubernetes.io/docs/reference/ names the
rules of structural schemas. What the server itself says of it is in tests/cluster/test_crd.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from glinthawk_operator.crd.generate import HEAD, main, render_crd
from glinthawk_operator.crd.rules import RULES
from glinthawk_operator.crd.schema import build_crd, build_root_schema
from glinthawk_operator.crd.values import Part

Node = dict[str, Any]

FORBIDDEN = {"$ref", "$defs", "title", "const", "oneOf", "allOf", "not", "patternProperties"}
FILE = Path(__file__).resolve().parents[4] / "crds" / "glinthawkdeployments.yaml"


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every schema with its path; `[]` are items, `{}` a map's values."""
    yield path, node
    for name, one in node.get("properties", {}).items():
        yield from walk(one, f"{path}.{name}")
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from walk(node["additionalProperties"], f"{path}{{}}")


NODES = dict(walk(build_root_schema()))
PARTS = {path: node for path, node in NODES.items() if path.startswith((".spec", ".status"))}


def test_the_file_is_in_step_with_the_models() -> None:
    assert FILE.read_text(encoding="utf-8") == render_crd(), "the models changed: run `make crd`"


def test_the_file_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "crd.yaml"
    main([str(path)])
    text = path.read_text(encoding="utf-8")
    assert text.startswith(HEAD)
    assert yaml.safe_load(text) == build_crd()


@pytest.mark.parametrize("path", PARTS)
def test_every_node_is_structural(path: str) -> None:
    node = PARTS[path]
    assert not FORBIDDEN & set(node)
    if node.get("x-kubernetes-int-or-string"):
        assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}]
        assert "type" not in node
        return
    assert "anyOf" not in node
    assert isinstance(node["type"], str)
    assert not ("properties" in node and "additionalProperties" in node)
    assert isinstance(node.get("exclusiveMinimum", False), bool)
    assert isinstance(node.get("exclusiveMaximum", False), bool)
    if "required" in node:
        assert set(node["required"]) <= set(node["properties"])


@pytest.mark.parametrize("path", PARTS)
def test_every_field_is_described_for_explain(path: str) -> None:
    if not path.endswith(("[]", "{}")):
        text = PARTS[path]["description"]
        assert (text.endswith((".", ";")) and text[0].isupper()) or text.startswith("http")


@pytest.mark.parametrize("path", PARTS)
def test_everything_that_can_grow_is_bounded(path: str) -> None:
    """Without, the API server takes the cost of a rule over it for unbounded and refuses it."""
    node = PARTS[path]
    kind = node.get("type")
    if kind == "string" and node.get("format") != "date-time":
        assert "maxLength" in node or "enum" in node
    if kind == "array":
        assert node["maxItems"] <= 64
        assert node["x-kubernetes-list-type"] in ("atomic", "set", "map")
    if "additionalProperties" in node:
        assert node["maxProperties"] <= 64
    if kind in ("integer", "number"):
        assert "minimum" in node


def test_a_keyed_list_requires_its_keys() -> None:
    keyed = [node for node in PARTS.values() if "x-kubernetes-list-map-keys" in node]
    assert len(keyed) >= 2
    for node in keyed:
        assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"])


def test_parts_with_defaults_alone_default_to_those_inside() -> None:
    assert PARTS[".spec.gateway.storage"]["default"] == {"size": "20Gi", "whenDeleted": "Retain"}
    assert PARTS[".spec.gateway"]["default"]["storage"]["size"] == "20Gi"
    assert "default" not in PARTS[".spec.memoryTier.kvCache"]
    assert PARTS[".spec"]["required"] == ["model", "gpuTier", "memoryTier"]


def test_a_default_says_nothing_of_what_may_be_left_out() -> None:
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert PARTS[".spec.gpuTier.tolerations"]["default"] == [toleration]


def test_a_status_has_no_defaults() -> None:
    defaults = [
        path for path, node in PARTS.items() if path.startswith(".status") and "default" in node
    ]
    assert defaults == [".status.conditions[].message", ".status.memoryTier.lastDecision.message"]


def test_bounds_are_written_as_openapi_3_does() -> None:
    seed = PARTS[".spec.gateway.seed"]
    assert (seed["minimum"], seed["format"], "maximum" in seed) == (0, "int64", False)
    stages = PARTS[".spec.gpuTier.stages"]
    assert (stages["minimum"], stages["maximum"], stages["format"]) == (1, 1024, "int32")


def test_every_rule_reaches_the_schema() -> None:
    written = [
        rule["message"]
        for node in NODES.values()
        for rule in node.get("x-kubernetes-validations", ())
    ]
    assert {rule.message for rules in RULES.values() for rule in rules} == set(written)


def test_the_replicas_rule_is_the_one_that_was_tried() -> None:
    (rule,) = [
        rule["rule"]
        for rule in PARTS[".spec.memoryTier"]["x-kubernetes-validations"]
        if "oldSelf" in rule["rule"]
    ]
    assert rule == (
        "self.scaling.mode != 'Auto' || oldSelf.scaling.mode != 'Auto' || !has(self.replicas) || "
        "(has(oldSelf.replicas) && self.replicas == oldSelf.replicas)"
    )


@pytest.mark.parametrize("part", RULES, ids=lambda part: str(part.__name__))
def test_rules_say_what_to_do_and_where(part: type[Part]) -> None:
    fields = {field.alias or name for name, field in part.model_fields.items()}
    for rule in RULES[part]:
        assert len(rule.message) <= 400
        assert "\n" not in rule.holds
        assert ":" in rule.message
        if rule.field is not None:
            assert rule.field.split(".")[0] in fields


def test_printed_columns_and_scale_read_fields_that_exist() -> None:
    (version,) = build_crd()["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    assert [one["name"] for one in columns if not one.get("priority")] == [
        *("Ready", "Stages", "Workers", "KV used", "tok/s", "Age"),
    ]
    paths = [one["jsonPath"] for one in columns] + list(version["subresources"]["scale"].values())
    for path in paths:
        if not path.startswith((".metadata", ".status.conditions")):
            assert path in PARTS
