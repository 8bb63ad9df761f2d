"""Sizes that cannot work are refused before anything is started."""

from pathlib import Path

import pytest

from factories_models import make_tiny_model
from glinthawk.config import BatchConfig, GatewayConfig, UpConfig
from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig
from glinthawk.gateway.tier_settings import asked_kv_dtype, check_sizes
from glinthawk.models.config import ModelConfig
from glinthawk.models.load import load_config
from glinthawk.models.source import resolve_model

FILES = {"input": Path("in.jsonl"), "output": Path("out.jsonl")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "llama3")
    return load_config(resolve_model(str(folder)))


@pytest.mark.parametrize("config", [UpConfig(kv_memory=5), BatchConfig(**FILES, kv_memory=5)])
def test_workers_of_our_own_must_hold_a_page(
    model: ModelConfig, config: UpConfig | BatchConfig
) -> None:
    with pytest.raises(InvalidConfig, match="--kv-memory 5 bytes do not hold one page of"):
        check_sizes(config, model)


def test_workers_from_elsewhere_are_checked_when_they_register(model: ModelConfig) -> None:
    check_sizes(GatewayConfig(), model)
    check_sizes(BatchConfig(**FILES, kv_memory=5, listen="127.0.0.1:0"), model)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (BatchConfig(**FILES), None),
        (BatchConfig(**FILES, dtype="bfloat16"), DType.BFLOAT16),
        (BatchConfig(**FILES, dtype="bfloat16", kv_dtype="float32"), DType.FLOAT32),
        (BatchConfig(**FILES, dtype="bfloat16", listen="127.0.0.1:0"), None),
        (GatewayConfig(kv_dtype="float16"), DType.FLOAT16),
        (GatewayConfig(), None),
    ],
)
def test_kv_has_the_format_of_stages_of_our_own(
    config: BatchConfig | GatewayConfig, dtype: DType | None
) -> None:
    assert asked_kv_dtype(config) is dtype


def test_a_sequence_longer_than_the_context_is_refused(model: ModelConfig) -> None:
    longest = model.context_length
    check_sizes(UpConfig(max_sequence_length=longest), model)
    with pytest.raises(InvalidConfig, match=f"{longest + 1} is above the model's context"):
        check_sizes(UpConfig(max_sequence_length=longest + 1), model)
