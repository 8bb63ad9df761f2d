from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factories_gguf import write_gguf
from factories_models import FAMILIES, build_random_model, make_tiny_model
from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.config import Llama3Scaling, ModelConfig
from glinthawk.models.hf_config import parse_hf_config
from glinthawk.models.load import load_config
from glinthawk.models.source import resolve_model

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 2,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _parse(generation: dict[str, Any] | None = None, **fields: Any) -> ModelConfig:
    return parse_hf_config({**LLAMA, **fields}, generation or {})


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_config_of_every_family_is_read(family: str, tmp_path: Path) -> None:
    path = make_tiny_model(family, tmp_path)
    config = load_config(resolve_model(str(path)))
    saved = AutoConfig.from_pretrained(path)
    assert config.hidden_size == saved.hidden_size
    assert config.head_dim == saved.head_dim
    assert config.num_kv_heads == saved.num_key_value_heads
    assert config.tied_embeddings == (family == "smollm2")
    assert config.qkv_bias == (family == "qwen2")
    assert config.qk_norm == (family == "qwen3")
    assert config.windows == ((24,) * 4 if family == "mistral" else (None,) * 4)
    assert config.eos_token_ids == (2,)
    assert config.checkpoint_dtype == DType.FLOAT32


def test_both_spellings_of_rope_parameters_mean_the_same() -> None:
    new = _parse(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_SCALING})
    old = _parse(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3_SCALING})
    assert new.rope == old.rope
    assert new.rope.llama3 == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    linear = _parse(rope_scaling={"type": "linear", "factor": 4.0})
    assert linear.rope.linear_factor == 4.0
    assert linear.rope.theta == 10_000.0


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_SCALING},
        {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3_SCALING, "factor": 32.0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    ],
)
@pytest.mark.parametrize("head_dim", [32, 48, 128])
def test_frequencies_equal_those_of_transformers(parameters: dict[str, Any], head_dim: int) -> None:
    reference = LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=head_dim, rope_parameters=dict(parameters)
    )
    kind = parameters["rope_type"]
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        expected = 1.0 / parameters["rope_theta"] ** exponents
    else:
        expected, _ = ROPE_INIT_FUNCTIONS[kind](reference, torch.device("cpu"))
    actual = _parse(rope_parameters=parameters).rope.inverse_frequencies(head_dim)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.numpy(), rtol=5e-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "'MixtralForCausalLM' is not supported"),
        ({"architectures": None, "model_type": "gemma2"}, "'gemma2' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, r"\['beta'\]"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "per layer type"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config = .*gptq"),
        ({"pretraining_tp": 2}, "pretraining_tp = 2"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor = 0.25"),
        ({"logit_scale": 0.0625}, "logit_scale = 0.0625"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"num_local_experts": 8}, "num_local_experts = 8"),
        ({"residual_multiplier": 0.2}, "residual_multiplier"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "code of its own"),
        ({"layer_types": ["sliding_attention"] * 4}, "no sliding_window"),
        ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"layer_types": ["full_attention"]}, "for 4 layers"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        _parse(**fields)


def test_options_without_effect_are_accepted() -> None:
    config = _parse(
        rope_interleaved=False,
        pretraining_tp=1,
        use_cache=True,
        attention_dropout=0.0,
        initializer_range=0.02,
        sliding_window=128,
        is_llama_config=True,
        num_local_experts=0,
        unsloth_fixed=True,
    )
    assert config.windows == (None,) * 4


def test_qwen_windows_start_where_the_config_says() -> None:
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "max_window_layers": 3}
    assert _parse(**qwen).windows == (None,) * 4
    assert _parse(**qwen, use_sliding_window=True).windows == (None, None, None, 8)
    types = ["sliding_attention", "full_attention"] * 2
    config = _parse(**qwen, use_sliding_window=True, layer_types=types)
    assert config.windows == (8, None, 8, None)


def test_mistral_window_may_be_null_or_left_to_the_default() -> None:
    mistral = {"architectures": ["MistralForCausalLM"]}
    assert _parse(**mistral, sliding_window=None).windows == (None,) * 4
    assert _parse(**mistral).windows == (4096,) * 4


def test_generation_config_replaces_the_end_tokens() -> None:
    assert _parse({"eos_token_id": [7, 9]}).eos_token_ids == (7, 9)
    assert _parse({"temperature": 0.6}).eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "not a multiple of 3"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ],
)
def test_damaged_config_is_refused_with_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        _parse(**fields)


def test_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    for text in ("{", "[]"):
        (path / "config.json").write_text(text)
        with pytest.raises(InvalidConfig, match=r"config\.json"):
            load_config(resolve_model(str(path)))


def test_layers_are_split_evenly_with_the_shorter_runs_last() -> None:
    config = _parse(num_hidden_layers=10)
    assert config.split_layers(1) == [(0, 10)]
    assert config.split_layers(4) == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert config.split_layers(10)[-1] == (9, 10)
    for impossible in (0, 11):
        with pytest.raises(InvalidConfig, match="1 to 10 stages"):
            config.split_layers(impossible)


def test_kv_geometry_has_the_shape_of_the_model() -> None:
    geometry = _parse(architectures=["MistralForCausalLM"], sliding_window=32).kv_geometry(
        DType.BFLOAT16
    )
    assert geometry.token_bytes == 2 * 4 * 2 * 16 * 2
    assert geometry.windows == (32,) * 4
    assert geometry.num_query_heads == 4


def _gguf(tmp_path: Path, family: str = "llama", **fields: Any) -> Path:
    options = {key: value for key, value in LLAMA.items() if key != "architectures"}
    options.pop("model_type")
    model = build_random_model(family, seed=0, **options, head_dim=16)
    return write_gguf(tmp_path / "m.gguf", model, fields=fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_says_the_same_as_the_config_of_its_model(family: str, tmp_path: Path) -> None:
    path = make_tiny_model(family, tmp_path / "hf")
    expected = load_config(resolve_model(str(path)))
    model = AutoModelForCausalLM.from_pretrained(path)
    window = {"attention.sliding_window": 24} if family == "mistral" else {}
    written = write_gguf(tmp_path / "m.gguf", model, fields=dict(window))
    actual = load_config(resolve_model(str(written)))
    assert actual.windows == expected.windows
    for name in ("num_layers", "head_dim", "vocab_size", "qkv_bias", "qk_norm", "tied_embeddings"):
        assert getattr(actual, name) == getattr(expected, name)
    assert actual.rope.theta == expected.rope.theta
    assert actual.norm_eps == pytest.approx(expected.norm_eps)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn'"),
        ({"rope.dimension_count": 8}, "rope.dimension_count = 8"),
        ({"expert_count": 8}, "llama.expert_count = 8"),
        ({"logit_scale": 0.5}, "llama.logit_scale = 0.5"),
        ({"attention.scale": 0.5}, "llama.attention.scale = 0.5"),
    ],
)
def test_gguf_options_that_are_not_computed_are_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = _gguf(tmp_path, **fields)
    with pytest.raises(UnsupportedModel, match=message):
        load_config(resolve_model(str(path)))


def test_gguf_linear_rope_is_read(tmp_path: Path) -> None:
    path = _gguf(tmp_path, **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert load_config(resolve_model(str(path))).rope.linear_factor == 4.0


def test_gguf_window_of_qwen_is_refused(tmp_path: Path) -> None:
    path = _gguf(tmp_path, "qwen2", **{"attention.sliding_window": 64})
    with pytest.raises(UnsupportedModel, match="sliding_window = 64"):
        load_config(resolve_model(str(path)))


def test_other_gguf_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = _gguf(tmp_path)
    path.write_bytes(
        path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma")
    )
    with pytest.raises(UnsupportedModel, match="'gemma' is not supported"):
        load_config(resolve_model(str(path)))


def test_smollm2_of_the_package_is_read() -> None:
    config = load_config(resolve_model())
    assert (config.num_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert config.tied_embeddings
    assert config.eos_token_ids == (2,)
    assert config.rope.theta == 100_000.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 15}, "head_dim 15"),
        ({"head_dim": 36}, "head_dim 36"),
        ({"head_dim": 264}, "head_dim 264"),
        ({"head_dim": 64, "num_attention_heads": 34, "num_key_value_heads": 2}, "34 query heads"),
    ],
)
def test_shapes_that_attention_does_not_compute_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        _parse(**fields)
