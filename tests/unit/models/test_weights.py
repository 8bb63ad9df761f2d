from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from factories_gguf import gguf_name, write_gguf
from factories_models import FAMILIES, make_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.config import ModelConfig
from glinthawk.models.gguf_file import read_gguf
from glinthawk.models.load import load_config
from glinthawk.models.source import ModelFiles, resolve_model
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
    gate, up = linear(_norm(x, w.post_norm, config.norm_eps), w.gate_up, w.gate_up_bias).chunk(2, -1)
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
    assert last.final_norm is not None and last.lm_head is not None
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


@pytest.mark.parametrize("family", ["llama2", "llama3", "qwen2", "qwen3", "smollm2", "mistral"])
def test_gguf_gives_the_weights_that_its_model_had(family: str, tmp_path: Path) -> None:
    path = make_tiny_model(family, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(path)
    written = write_gguf(tmp_path / "m.gguf", model)
    _, expected = _load(path)
    _, actual = _load(written)
    _assert_same(actual, expected)


def test_biases_of_rotated_rows_are_put_back_in_order(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path / "hf", attention_bias=True, mlp_bias=True)
    written = write_gguf(tmp_path / "m.gguf", AutoModelForCausalLM.from_pretrained(path))
    _, expected = _load(path)
    config, actual = _load(written)
    assert config.qkv_bias and config.output_bias and config.mlp_bias
    _assert_same(actual, expected)


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
    assert middle.embedding is None and middle.lm_head is None and middle.final_norm is None


def test_one_stage_holds_a_tied_embedding_once(tmp_path: Path) -> None:
    _, whole = _load(make_tiny_model("smollm2", tmp_path))
    assert whole.embedding is whole.lm_head
    _, last = _load(tmp_path, 2)
    assert last.embedding is None and last.lm_head is not None
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
    with pytest.raises(InvalidConfig, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight .*\[160, 64\]"):
        _load(path)
    _load(path, 2)


def test_misshaped_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(64, 64)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(InvalidConfig, match=r"k_proj\.weight has the shape \[64, 64\].*\[128, 64\]"):
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
    rounded = load_stage_weights(
        files, config, 0, 4, weight_dtype=torch.float32, rounded_to=dtype
    )
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


QUANTS = gguf.GGMLQuantizationType


@pytest.mark.parametrize("quant", [QUANTS.F16, QUANTS.BF16, QUANTS.Q8_0, QUANTS.Q4_0, QUANTS.Q4_1])
def test_quantized_matrices_are_what_the_gguf_library_makes_of_them(
    quant: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    path = make_tiny_model("qwen2", tmp_path / "hf", num_hidden_layers=1)
    model = AutoModelForCausalLM.from_pretrained(path)
    _, weights = _load(write_gguf(tmp_path / "m.gguf", model, quant=quant))
    down = model.state_dict()["model.layers.0.mlp.down_proj.weight"].numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(down, quant), quant)
    assert np.array_equal(weights.layers[0].down.numpy(), expected.reshape(down.shape))
    assert np.abs(expected.reshape(down.shape) - down).max() < 0.2


def _write_k_quant(path: Path, quant: gguf.GGMLQuantizationType, blocks: bytes) -> Path:
    """Write a one-layer model with 256 inputs to every matrix; `blocks` fills up_proj."""
    model = AutoModelForCausalLM.from_pretrained(
        make_tiny_model(
            "qwen2",
            path.parent / "hf",
            num_hidden_layers=1,
            hidden_size=256,
            intermediate_size=256,
        )
    )
    writer_type = gguf.GGUFWriter
    target = "blk.0.ffn_up.weight"

    class Patched(writer_type):  # type: ignore[misc, valid-type]
        def add_tensor(self, name, tensor, *args, **kwargs):  # type: ignore[no-untyped-def]
            if name == target:
                rows = np.frombuffer(blocks, dtype=np.uint8).reshape(256, -1)
                super().add_tensor(name, rows, raw_dtype=quant)
            else:
                super().add_tensor(name, tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", Patched)
        return write_gguf(path, model)


def _half(value: float) -> bytes:
    return np.float16(value).tobytes()


# One super-block of 256 values each, by ggml's layout, whose values follow from these bytes.
K_BLOCKS = {
    # scale 0.5, minimum 0.25; all 6-bit scales 2 and minimums 1; low nibble 3, high nibble 5
    QUANTS.Q4_K: (
        _half(0.5) + _half(0.25) + bytes([2] * 4 + [1] * 4 + [0x12] * 4) + bytes([0x53]) * 128,
        [0.5 * 2 * 3 - 0.25] * 32 + [0.5 * 2 * 5 - 0.25] * 32,
    ),
    # the same with all fifth bits set: 16 more
    QUANTS.Q5_K: (
        _half(0.5)
        + _half(0.25)
        + bytes([2] * 4 + [1] * 4 + [0x12] * 4)
        + bytes([0xFF]) * 32
        + bytes([0x53]) * 128,
        [0.5 * 2 * 19 - 0.25] * 32 + [0.5 * 2 * 21 - 0.25] * 32,
    ),
    # low nibbles 3 and 5, upper bits 2: 35 and 37, less 32; scales -4; scale 0.5
    QUANTS.Q6_K: (
        bytes([0x53]) * 128 + bytes([0xAA]) * 64 + bytes([0xFC]) * 16 + _half(0.5),
        [0.5 * -4 * 3] * 64 + [0.5 * -4 * 5] * 64,
    ),
}


@pytest.mark.parametrize("quant", K_BLOCKS)
def test_k_quants_decode_to_values_computed_by_hand(
    quant: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    block, period = K_BLOCKS[quant]
    _, weights = _load(_write_k_quant(tmp_path / "m.gguf", quant, block * 256))
    up = weights.layers[0].gate_up[256:].numpy()
    expected = np.resize(np.array(period, dtype=np.float32), 256)
    assert np.allclose(up, expected, rtol=1e-6)


def test_other_gguf_type_is_refused_by_name(tmp_path: Path) -> None:
    path = _write_k_quant(tmp_path / "m.gguf", QUANTS.Q2_K, bytes(84) * 256)
    with pytest.raises(UnsupportedModel, match=r"ffn_up\.weight has the type Q2_K; supported"):
        _load(path)


def test_rope_factors_of_a_gguf_equal_llama3_scaling(tmp_path: Path) -> None:
    path = make_tiny_model("llama3", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(path)
    config, _ = _load(path)
    plain = type(config.rope)(config.rope.theta).inverse_frequencies(config.head_dim)
    scaled = config.rope.inverse_frequencies(config.head_dim)
    assert not np.allclose(plain, scaled)
    written = write_gguf(tmp_path / "m.gguf", model, rope_factors=plain / scaled)
    read, _ = _load(written)
    assert np.allclose(read.rope.inverse_frequencies(config.head_dim), scaled, rtol=1e-6)


def test_smollm2_has_the_tensors_that_the_gguf_library_reads() -> None:
    files: ModelFiles = resolve_model("smollm2-135m")
    config = load_config(files)
    weights = load_stage_weights(files, config, 4, 5, weight_dtype=torch.float32)
    assert files.gguf is not None
    file = read_gguf(files.gguf)
    stored = file.tensors[gguf_name("model.layers.4.self_attn.v_proj.weight")]
    raw = np.fromfile(
        files.gguf, np.uint8, stored.num_rows * stored.row_bytes, offset=stored.offset
    ).reshape(stored.num_rows, -1)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(stored.type_id))
    assert stored.type_name == "Q4_1"
    assert np.array_equal(weights.layers[0].qkv[-192:].numpy(), expected)


def test_smollm2_weights_equal_those_transformers_reads() -> None:
    files = resolve_model("smollm2-135m")
    assert files.gguf is not None
    config = load_config(files)
    weights = load_stage_weights(files, config, 0, 2, weight_dtype=torch.float32)
    state = AutoModelForCausalLM.from_pretrained(
        files.gguf.parent, gguf_file=files.gguf.name, dtype=torch.float32
    ).state_dict()
    prefix = "model.layers.1.self_attn."
    qkv = torch.cat([state[f"{prefix}{name}_proj.weight"] for name in "qkv"])
    torch.testing.assert_close(weights.layers[1].qkv, qkv, rtol=1e-6, atol=1e-7)
    assert weights.embedding is not None
    torch.testing.assert_close(weights.embedding, state["model.embed_tokens.weight"])
