from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from factories_models import FAMILIES, make_tiny_model
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.config import ModelConfig
from glinthawk.models.load import load_config
from glinthawk.models.source import resolve_model
from glinthawk.models.weights import LayerWeights, StageWeights, load_stage_weights


def _load(path: Path, first: int = 0, last: int | None = None) -> tuple[ModelConfig, StageWeights]:
    files = resolve_model(str(path))
    config = load_config(files)
    last = config.num_layers if last is None else last
    return config, load_stage_weights(files, config, first, last, weight_dtype=torch.float32)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _layer(
    config: ModelConfig, geometry: KVGeometry, index: int, w: LayerWeights, x: torch.Tensor
) -> torch.Tensor:
    num_rows, dim = x.shape[0], config.head_dim
    linear = torch.nn.functional.linear
    qkv = linear(_norm(x, w.input_norm, config.norm_eps), w.qkv, w.qkv_bias)
    q, k, v = qkv.split([config.query_size, config.kv_size, config.kv_size], -1)
    q, k, v = (part.view(num_rows, -1, dim) for part in (q, k, v))
    if w.q_norm is not None and w.k_norm is not None:
        q, k = _norm(q, w.q_norm, config.norm_eps), _norm(k, w.k_norm, config.norm_eps)
    rows = torch.arange(num_rows)
    angles = rows[:, None] * torch.from_numpy(config.rope.inverse_frequencies(dim))
    q, k = _rotate(q, angles), _rotate(k, angles)
    group = config.num_query_heads // config.num_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * config.attention_scale
    hidden = rows[None] > rows[:, None]
    window = geometry.windows[index]
    if window is not None:
        hidden = hidden | (rows[None] <= rows[:, None] - window)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    attended = torch.einsum("hij,jhd->ihd", weights, v).reshape(num_rows, -1)
    x = x + linear(attended, w.output, w.output_bias)
    gate, up = linear(_norm(x, w.post_norm, config.norm_eps), w.gate_up, w.gate_up_bias).chunk(
        2, -1
    )
    return x + linear(torch.nn.functional.silu(gate) * up, w.down, w.down_bias)


def _logits(path: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Run the model of two stages by the equations."""
    config, first = _load(path, 0, 1)
    _, last = _load(path, 1)
    geometry = config.kv_geometry(config.checkpoint_dtype or 1)  # type: ignore[arg-type]
    assert first.embedding is not None
    x = first.embedding[tokens]
    for index, layer in enumerate(first.layers + last.layers):
        x = _layer(config, geometry, index, layer, x)
    assert last.final_norm is not None
    assert last.lm_head is not None
    return _norm(x, last.final_norm, config.norm_eps) @ last.lm_head.T


def _reference_logits(path: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        logits: torch.Tensor = model(tokens[None]).logits[0]
    return logits


TOKENS = torch.arange(200) * 7 % 384

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "biased llama": ("llama3", {"attention_bias": True, "mlp_bias": True}),
    "biased qwen3": ("qwen3", {"attention_bias": True}),
    "linear rope": (
        "llama2",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "tied qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "windows in upper layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equations_over_loaded_weights_give_the_logits_of_transformers(
    variant: str, tmp_path: Path
) -> None:
    family, overrides = VARIANTS[variant]
    path = make_tiny_model(family, tmp_path, **overrides)
    assert (_logits(path, TOKENS) - _reference_logits(path, TOKENS)).abs().max() < 2e-3


def _assert_same(actual: StageWeights, expected: StageWeights) -> None:
    for name in ("embedding", "final_norm", "lm_head"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=0, atol=0)
    for one, other in zip(actual.layers, expected.layers, strict=True):
        for name, value in vars(other).items():
            torch.testing.assert_close(getattr(one, name), value, rtol=0, atol=0)


def test_sharded_checkpoint_equals_the_single_file(tmp_path: Path) -> None:
    single = make_tiny_model("qwen2", tmp_path / "single")
    sharded = make_tiny_model("qwen2", tmp_path / "sharded", max_shard_size="200KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    _assert_same(_load(sharded)[1], _load(single)[1])


def test_stage_opens_only_the_shards_of_its_layers(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path, max_shard_size="100KB")
    _, middle = _load(path, 1, 3)
    assert len(middle.layers) == 2
    assert (middle.embedding, middle.lm_head, middle.final_norm) == (None, None, None)


def test_one_stage_holds_a_tied_embedding_once(tmp_path: Path) -> None:
    _, whole = _load(make_tiny_model("smollm2", tmp_path))
    assert whole.embedding is whole.lm_head
    _, last = _load(tmp_path, 2)
    assert last.embedding is None
    assert last.lm_head is not None
    assert torch.equal(last.lm_head, whole.lm_head)


def test_a_head_that_differs_from_its_tied_embedding_is_used(tmp_path: Path) -> None:
    path = make_tiny_model("smollm2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 0.5
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert (_logits(path, TOKENS) - _reference_logits(path, TOKENS)).abs().max() < 2e-3


def test_missing_tensor_is_named_with_its_expected_shape(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(
        InvalidConfig, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight .*\[160, 64\]"
    ):
        _load(path)
    _load(path, 2)


def test_misshaped_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(64, 64)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(
        InvalidConfig, match=r"k_proj\.weight has the shape \[64, 64\].*\[128, 64\]"
    ):
        _load(path)


def test_tensor_without_a_place_in_the_equations_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(128)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"q_proj\.bias has no place in LlamaForCausalLM"):
        _load(path)


def test_unread_number_format_is_refused_by_name(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"down_proj\.weight has the type F8_E4M3"):
        _load(path)


def test_layers_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    with pytest.raises(InvalidConfig, match=r"layers \[2, 5\) do not exist"):
        _load(path, 2, 5)


def test_truncated_safetensors_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(InvalidConfig, match="not a whole safetensors file"):
        _load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrices_take_the_dtype_and_norms_stay_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    files = resolve_model(str(make_tiny_model("qwen3", tmp_path)))
    config = load_config(files)
    exact = load_stage_weights(files, config, 0, 4, weight_dtype=torch.float32)
    weights = load_stage_weights(files, config, 0, 4, weight_dtype=dtype)
    rounded = load_stage_weights(files, config, 0, 4, weight_dtype=torch.float32, rounded_to=dtype)
    layer = weights.layers[1]
    assert torch.equal(layer.qkv, exact.layers[1].qkv.to(dtype))
    assert torch.equal(layer.qkv.float(), rounded.layers[1].qkv)
    assert layer.q_norm is not None
    assert torch.equal(layer.input_norm, exact.layers[1].input_norm)
    assert layer.q_norm.dtype == torch.float32


def test_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 3] = 1e6
    save_file(tensors, path / "model.safetensors")
    files = resolve_model(str(path))
    with pytest.raises(InvalidConfig, match="beyond float16's range"):
        load_stage_weights(files, load_config(files), 0, 4, weight_dtype=torch.float16)


def test_a_tied_head_serves_as_the_embedding_that_is_missing(tmp_path: Path) -> None:
    path = make_tiny_model("smollm2", tmp_path)
    expected = _load(path)[1].embedding
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path / "model.safetensors")
    _, weights = _load(path)
    assert weights.embedding is weights.lm_head
    assert expected is not None
    assert weights.embedding is not None
    assert torch.equal(weights.embedding, expected)
