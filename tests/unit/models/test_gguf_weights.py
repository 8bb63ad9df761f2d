from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from factories_gguf import build_reference_from_gguf, gguf_name, write_gguf
from factories_models import FAMILIES, make_tiny_model
from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.config import ModelConfig
from glinthawk.models.gguf_file import read_gguf
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.load import load_config
from glinthawk.models.source import ModelFiles, resolve_model
from glinthawk.models.weights import StageWeights, load_stage_weights


def _load(path: Path, first: int = 0, last: int | None = None) -> tuple[ModelConfig, StageWeights]:
    files = resolve_model(str(path))
    config = load_config(files)
    last = config.num_layers if last is None else last
    return config, load_stage_weights(files, config, first, last, weight_dtype=torch.float32)


def _assert_same(actual: StageWeights, expected: StageWeights) -> None:
    for name in ("embedding", "final_norm", "lm_head"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=0, atol=0)
    for one, other in zip(actual.layers, expected.layers, strict=True):
        for name, value in vars(other).items():
            torch.testing.assert_close(getattr(one, name), value, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
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
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, True, True)
    _assert_same(actual, expected)


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


def test_smollm2_weights_equal_those_of_a_reference_that_makes_sense() -> None:
    files = resolve_model("smollm2-135m")
    assert files.gguf is not None
    config = load_config(files)
    weights = load_stage_weights(files, config, 0, 2, weight_dtype=torch.float32)
    model = build_reference_from_gguf(files.gguf)
    state = model.state_dict()
    prefix = "model.layers.1.self_attn."
    qkv = torch.cat([state[f"{prefix}{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(weights.layers[1].qkv, qkv)
    assert weights.embedding is not None
    assert torch.equal(weights.embedding, state["model.embed_tokens.weight"])
    # The permutation is right if the model makes sense: "The capital of France is" " Paris".
    tokens = load_tokenizer(files).encode("The capital of France is")
    with torch.no_grad():
        best = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
    assert load_tokenizer(files).token_text(best) == " Paris"


def test_gguf_that_ends_before_its_tensors_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("qwen2", tmp_path / "hf", num_hidden_layers=1)
    written = write_gguf(tmp_path / "m.gguf", AutoModelForCausalLM.from_pretrained(path))
    written.write_bytes(written.read_bytes()[: read_gguf(written).header_bytes + 100])
    with pytest.raises(InvalidConfig, match="ends before tensor"):
        _load(written)
