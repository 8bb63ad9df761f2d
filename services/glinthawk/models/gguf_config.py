"""Reads the shape of a model from a GGUF file's metadata.

GGUF's vocabulary is small, so it is read strictly: a key of the architecture, or a tensor,
that is not known here is refused, because llama.cpp might compute something from it.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.config import ModelConfig, RopeConfig
from glinthawk.models.gguf_file import GgufFile, read_gguf

# Mistral files state the architecture llama.
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor with the divisors of the rope frequencies (llama3 scaling)."""

_KNOWN_KEYS = frozenset(
    {
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "tensor_data_layout",
        "vocab_size",
    }
)
_TENSOR = re.compile(
    r"token_embd\.weight|output_norm\.weight|output\.weight|rope_freqs\.weight"
    r"|blk\.\d+\.(attn_norm|ffn_norm|attn_q_norm|attn_k_norm)\.weight"
    r"|blk\.\d+\.(attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)\.(weight|bias)"
)


def load_gguf_config(path: Path) -> ModelConfig:
    """Read the model's shape from the GGUF file at `path`.

    Raises:
        UnsupportedModel: the architecture or an option of it is not computed here.
        InvalidConfig: the file is damaged or a field is missing.
    """
    file = read_gguf(path)
    name = str(file.metadata.get("general.architecture"))
    if name not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF architecture {name!r} is not supported; supported are "
            f"{', '.join(_ARCHITECTURES)}"
        )
    prefix = f"{name}."
    fields = {k[len(prefix) :]: v for k, v in file.metadata.items() if k.startswith(prefix)}
    _refuse_unknown(file, fields, prefix)
    return _build_config(file, _ARCHITECTURES[name], fields)


def _build_config(file: GgufFile, architecture: str, fields: dict[str, Any]) -> ModelConfig:
    tensors = file.tensors
    hidden_size = _count(fields, "embedding_length")
    num_query_heads = _count(fields, "attention.head_count")
    head_dim = int(fields.get("attention.key_length") or hidden_size // num_query_heads)
    _check_heads(fields, head_dim)
    num_layers = _count(fields, "block_count")
    embedding = tensors.get("token_embd.weight")
    vocab_size = embedding.shape[0] if embedding else int(fields.get("vocab_size", 0))
    kv_heads = fields.get("attention.head_count_kv")
    return ModelConfig(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=_count(fields, "feed_forward_length"),
        num_query_heads=num_query_heads,
        num_kv_heads=num_query_heads if kv_heads is None else _uniform(kv_heads, "head_count_kv"),
        head_dim=head_dim,
        vocab_size=vocab_size,
        context_length=_count(fields, "context_length"),
        norm_eps=float(fields.get("attention.layer_norm_rms_epsilon", 1e-6)),
        rope=_rope_of(file, fields, head_dim),
        windows=_windows_of(architecture, fields, num_layers),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        tied_embeddings="output.weight" not in tensors,
        eos_token_ids=_eos_ids(file.metadata),
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
    )


def _refuse_unknown(file: GgufFile, fields: dict[str, Any], prefix: str) -> None:
    for key, value in fields.items():
        if key not in _KNOWN_KEYS and value not in (None, 0, 0.0, False, "", []):
            raise UnsupportedModel(
                f"GGUF key {prefix}{key} = {value!r} is not supported: it may change what the "
                "model computes"
            )
    if fields.get("attention.causal") is False:
        raise UnsupportedModel(f"GGUF key {prefix}attention.causal = False is not supported")
    for name in file.tensors:
        if not _TENSOR.fullmatch(name):
            raise UnsupportedModel(f"GGUF tensor {name!r} is not one of a supported architecture")


def _count(fields: dict[str, Any], key: str) -> int:
    if key not in fields:
        raise InvalidConfig(f"the GGUF file has no {key} for its architecture")
    return _uniform(fields[key], key)


def _uniform(value: Any, key: str) -> int:
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1:
        raise UnsupportedModel(f"GGUF key {key} differs between layers: {sorted(values)}")
    return int(values.pop())


def _check_heads(fields: dict[str, Any], head_dim: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        value = fields.get(key, head_dim)
        if value != head_dim:
            raise UnsupportedModel(
                f"GGUF key {key} = {value} is not supported: it must equal the size of a head, "
                f"{head_dim}"
            )


def _rope_of(file: GgufFile, fields: dict[str, Any], head_dim: int) -> RopeConfig:
    theta = float(fields.get("rope.freq_base", 10_000.0))
    kind = fields.get("rope.scaling.type", "none")
    if kind not in ("none", "", "linear"):
        raise UnsupportedModel(
            f"GGUF rope.scaling.type = {kind!r} is not supported; supported are none and linear"
        )
    factor = float(fields.get("rope.scale_linear") or 0.0) or 1.0
    if kind == "linear":
        factor = float(fields.get("rope.scaling.factor") or factor)
    return RopeConfig(
        theta, linear_factor=factor, frequency_factors=_frequency_factors(file, head_dim)
    )


def _frequency_factors(file: GgufFile, head_dim: int) -> tuple[float, ...] | None:
    tensor = file.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.shape != (head_dim // 2,) or tensor.type_name != "F32":
        raise InvalidConfig(
            f"tensor {ROPE_FACTORS} is {tensor.type_name} {list(tensor.shape)}; expected F32 "
            f"[{head_dim // 2}]"
        )
    values = np.fromfile(file.path, dtype="<f4", count=head_dim // 2, offset=tensor.offset)
    if len(values) < head_dim // 2:
        raise InvalidConfig(f"{file.path} ends within tensor {ROPE_FACTORS}")
    return tuple(float(value) for value in values)


def _windows_of(
    architecture: str, fields: dict[str, Any], num_layers: int
) -> tuple[int | None, ...]:
    window = int(fields.get("attention.sliding_window") or 0)
    if window and architecture.startswith("Qwen"):
        raise UnsupportedModel(
            f"GGUF attention.sliding_window = {window} is not supported for {architecture}: the "
            "file does not say which layers it is for"
        )
    return (window or None,) * num_layers


def _eos_ids(metadata: dict[str, Any]) -> tuple[int, ...]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    return tuple(dict.fromkeys(int(value) for value in found if value is not None))
