from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from factories_operator import make_spec
from factories_resource import ABSENT, MINIMAL, build_spec, build_spec_document
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec


def test_the_smallest_spec_says_model_stages_and_memory() -> None:
    spec = build_spec()
    assert spec.gateway.service.port == 8000
    assert spec.memory_tier.scaling.mode == "Auto"
    assert spec.memory_tier.replicas is None
    assert spec.gpu_tier.gpu_memory_bytes == 16 << 30
    assert spec.memory_tier.kv_cache.memory_bytes == 1 << 30


@pytest.mark.parametrize(
    "path",
    ["model", "model.source", "gpuTier.stages", "memoryTier.kvCache", "memoryTier.kvCache.memory"],
)
def test_what_must_be_said_is_missed(path: str) -> None:
    with pytest.raises(ValidationError, match="Field required"):
        build_spec({path: ABSENT})


def test_a_spec_survives_being_written_and_read() -> None:
    spec = build_spec(
        {
            "memoryTier.scaling": {"mode": "Manual", "maxReplicas": 4},
            "memoryTier.replicas": 3,
            "gpuTier.env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
            "gateway.nodeSelector": {"pool": "cpu"},
        }
    )
    written = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert GlinthawkDeploymentSpec.model_validate(written) == spec
    assert written["memoryTier"]["scaling"]["scaleDown"]["drainTimeoutSeconds"] == 600


@pytest.mark.parametrize(
    "changes",
    [
        {"gpuTier.stage": 2},
        {"model.cache.sise": "1Gi"},
        {"memoryTier.kv_memory": "1Gi"},
        {"unknown": 1},
    ],
)
def test_unknown_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        build_spec(changes)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("memoryTier.kvCache.memory", "16GiB"),
        ("memoryTier.kvCache.memory", "-1Gi"),
        ("memoryTier.kvCache.memory", True),
        ("gpuTier.gpuMemory", "lots"),
        ("gpuTier.resources.requests", {"cpu": "two"}),
        ("gpuTier.resources.requests", {"not a name": "2"}),
        ("gpuTier.podLabels", {"-": "x"}),
        ("gpuTier.podLabels", {"x": "a b"}),
        ("model.endpoint", "mirror.example.com"),
        ("model.credentialsSecret", "Not_A_Name"),
        ("metrics.serviceMonitor", "on"),
    ],
)
def test_values_of_the_wrong_form_are_refused(path: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        build_spec({path: value})


def test_a_quantity_may_be_a_bare_number() -> None:
    assert build_spec({"memoryTier.kvCache.memory": 1 << 30}) == build_spec(
        {"memoryTier.kvCache.memory": str(1 << 30)}
    )


def test_a_spec_does_not_change() -> None:
    spec = build_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.gpu_tier.stages = 3


def test_the_factory_leaves_the_smallest_spec_as_it_is() -> None:
    before = build_spec_document()
    build_spec_document({"gpuTier.stages": 9, "memoryTier.kvCache.memory": ABSENT})
    assert before == MINIMAL


def test_a_hub_model_has_an_id() -> None:
    model = build_spec({"model.source": "hf://org/name"}).model
    assert (model.hub_id, model.claim, model.model_names) == ("org/name", None, ("org/name",))


@pytest.mark.parametrize(
    ("source", "claim"),
    [
        ("pvc://models", ("models", "")),
        ("pvc://models/", ("models", "")),
        ("pvc://models/llama/8b", ("models", "llama/8b")),
        ("pvc://models/smollm2.gguf", ("models", "smollm2.gguf")),
    ],
)
def test_a_volumes_model_has_a_claim_and_a_path(source: str, claim: tuple[str, str]) -> None:
    model = build_spec({"model.source": source}).model
    assert (model.hub_id, model.claim) == (None, claim)


def test_served_names_win_over_the_source() -> None:
    assert build_spec({"model.servedModelName": ["a", "b"]}).model.model_names == ("a", "b")


def list_parts(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return a model and all that it is made of."""
    parts = [model]
    for field in model.model_fields.values():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parts += list_parts(kind)
    return parts


def test_every_size_and_time_says_its_unit() -> None:
    for part in list_parts(GlinthawkDeploymentSpec):
        for name, field in part.model_fields.items():
            text = (field.description or "").lower()
            if name.endswith("_seconds"):
                assert "second" in text, (part, name)
            if name.endswith(("memory", "size", "_bytes", "overhead")):
                assert "bytes" in text, (part, name)
            if name.endswith(("utilization", "busy", "idle", "tolerance", "percent")):
                assert "percent" in text, (part, name)


def test_fields_of_a_later_release_are_passed_over_where_they_are_asked_to_be() -> None:
    spec = make_spec().model_dump(mode="json", by_alias=True, exclude_none=True)
    spec["gateway"]["ofALaterRelease"] = 1000
    read = GlinthawkDeploymentSpec.model_validate(spec, extra="ignore")
    assert read == make_spec()
