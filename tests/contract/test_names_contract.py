"""What a user can set in the custom resource and in a process has one name, default and bounds."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from factories_resource import build_spec
from glinthawk.config import AttentionConfig, GatewayConfig, StageConfig, parse_size
from glinthawk_operator.crd.quantity import parse_bytes
from glinthawk_operator.crd.spec import (
    GatewaySpec,
    GlinthawkDeploymentSpec,
    GpuTierSpec,
    KvCacheSpec,
    MemoryTierSpec,
    ModelSpec,
)

ROOT = Path(__file__).resolve().parents[2]

SAME: list[tuple[type[BaseModel], type[BaseModel], tuple[str, ...]]] = [
    (ModelSpec, GatewayConfig, ("revision", "max_sequence_length", "served_model_name")),
    (ModelSpec, StageConfig, ("revision", "dtype")),
    (GpuTierSpec, StageConfig, ("device", "max_rows")),
    (
        GatewaySpec,
        GatewayConfig,
        (
            *("lanes", "max_lane_rows", "min_lane_rows", "prefill_tokens", "seed"),
            *("max_key_requests", "max_key_tokens", "max_key_batches"),
        ),
    ),
    (GlinthawkDeploymentSpec, GatewayConfig, ("transport", "log_level")),
    (GlinthawkDeploymentSpec, StageConfig, ("transport", "log_level")),
    (GlinthawkDeploymentSpec, AttentionConfig, ("transport", "log_level")),
]
"""Of a part of the spec, of a process's configuration, fields that are the same in both."""

_TEXT = {"description", "title", "items", "anyOf", "maxItems", "x-kubernetes-list-type"}


def describe(model: type[BaseModel], name: str) -> dict[str, Any]:
    """Return bounds and default of a field."""
    schema = model.model_json_schema(by_alias=False)["properties"][name]
    chosen = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    merged = {**schema, **(chosen[0] if chosen else {})}
    if name in ("revision", "served_model_name"):
        merged = {"type": merged["type"], "default": merged.get("default")}
    return {key: value for key, value in merged.items() if key not in _TEXT}


@pytest.mark.parametrize(
    ("part", "config", "name"),
    [(part, config, name) for part, config, names in SAME for name in names],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_setting_is_the_same_in_resource_and_process(
    part: type[BaseModel], config: type[BaseModel], name: str
) -> None:
    assert describe(part, name) == describe(config, name)


@pytest.mark.parametrize("name", ["max_body_bytes", "max_file_bytes", "max_line_bytes"])
def test_sizes_default_to_the_same_bytes(name: str) -> None:
    written = getattr(GatewaySpec(), name)
    assert parse_bytes(written) == parse_size(written) == getattr(GatewayConfig(), name)


def test_threads_have_the_same_bounds() -> None:
    stage, worker = describe(StageConfig, "threads"), describe(AttentionConfig, "threads")
    for part, config in ((GpuTierSpec, stage), (MemoryTierSpec, worker)):
        mine = describe(part, "threads")
        assert (mine["minimum"], mine["maximum"]) == (config["minimum"], config["maximum"])


def test_the_kv_cache_is_named_by_its_part() -> None:
    """kvCache.memory and kvCache.dtype are kv_memory and kv_dtype of the processes."""
    assert {f"kv_{name}" for name in KvCacheSpec.model_fields} == {"kv_memory", "kv_dtype"}
    assert "kv_memory" in AttentionConfig.model_fields
    assert describe(KvCacheSpec, "dtype") == describe(GatewayConfig, "kv_dtype")


def test_a_drain_may_take_as_long_as_a_worker_may_wait() -> None:
    scaling = build_spec().memory_tier.scaling.scale_down
    limit = describe(type(scaling), "drain_timeout_seconds")["maximum"]
    assert limit == describe(AttentionConfig, "drain_timeout_s")["maximum"]


def test_the_example_is_a_good_spec_of_two_stages_and_up_to_three_workers() -> None:
    text = (ROOT / "examples" / "glinthawkdeployment.yaml").read_text(encoding="utf-8")
    spec = GlinthawkDeploymentSpec.model_validate(yaml.safe_load(text)["spec"])
    scaling = spec.memory_tier.scaling
    assert spec.gpu_tier.stages == 2
    assert (scaling.mode, scaling.min_replicas, scaling.max_replicas) == ("Auto", 1, 3)
