"""Reads config.json and generation_config.json of a folder in Hugging Face layout.

Fields and defaults are those of transformers' config classes, in the spelling of version 5
(`rope_parameters`, `dtype`) and before (`rope_theta`, `rope_scaling`, `torch_dtype`). A field
that would change the result and that no `ModelConfig` expresses is refused.
"""

import json
import re
from pathlib import Path
from typing import Any

from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.config import Llama3Scaling, ModelConfig, RopeConfig

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

_TYPE_TO_ARCHITECTURE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_NEUTRAL_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": (None, "silu", "swish"),
    "hidden_activation": (None, "silu", "swish"),
    "pretraining_tp": (None, 0, 1),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
    "compression_config": (None,),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "cross_attention_hidden_size": (None,),
    "use_qkv_bias": (None,),
    "attn_bias": (None, False),
}
"""Fields that are supported at these values only."""

_SUSPICIOUS = re.compile(
    r"scal(e|ing|ar)|multiplier|softcap|expert|moe|rotary|rope|qk_norm|layernorm|alibi|sink"
    r"|lora|attention_chunk|mup|residual"
)
"""Other fields whose name tells that they change the computation; refused unless neutral."""

_KNOWN = frozenset({"rope_parameters", "rope_theta", "rope_scaling", "rope_interleaved"})
_ROPE_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
}
_THETA = 10_000.0


def load_hf_config(folder: Path) -> ModelConfig:
    """Read the model's shape from the configuration files in `folder`.

    Raises:
        UnsupportedModel: the architecture or an option of it is not computed here.
        InvalidConfig: a file is damaged or a field is missing.
    """
    raw = _read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.is_file() else {}
    return parse_hf_config(raw, generation)


def parse_hf_config(raw: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    """Return the shape that a parsed config.json and generation_config.json describe.

    As in transformers' `generate`, the end-of-sequence ids of the generation config, where it
    has some, replace those of the config.
    """
    architecture = _architecture_of(raw)
    _refuse_unsupported(raw)
    is_qwen = architecture.startswith("Qwen")
    num_layers = _count(raw, "num_hidden_layers")
    num_query_heads = _count(raw, "num_attention_heads")
    hidden_size = _count(raw, "hidden_size")
    head_dim = raw.get("head_dim")
    if head_dim is None:
        head_dim = 128 if architecture == "Qwen3ForCausalLM" else hidden_size // num_query_heads
    eos = generation.get("eos_token_id")
    has_attention_bias = bool(raw.get("attention_bias")) and architecture in _BIASED
    return ModelConfig(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=_count(raw, "intermediate_size"),
        num_query_heads=num_query_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_query_heads),
        head_dim=int(head_dim),
        vocab_size=_count(raw, "vocab_size"),
        context_length=_count(raw, "max_position_embeddings"),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=_rope_of(raw),
        windows=_windows_of(raw, num_layers, is_qwen=is_qwen, architecture=architecture),
        qkv_bias=architecture == "Qwen2ForCausalLM" or has_attention_bias,
        output_bias=has_attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and bool(raw.get("mlp_bias")),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        eos_token_ids=_token_ids(raw.get("eos_token_id") if eos is None else eos),
        bos_token_id=raw.get("bos_token_id"),
        checkpoint_dtype=_dtype_of(raw),
    )


_BIASED = ("LlamaForCausalLM", "Qwen3ForCausalLM")
"""Architectures in which `attention_bias` has a meaning (on q, k, v and the output)."""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InvalidConfig(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _count(raw: dict[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidConfig(f"config.json: {key} is {value!r}; it must be a positive integer")
    return value


def _architecture_of(raw: dict[str, Any]) -> str:
    named = raw.get("architectures") or [_TYPE_TO_ARCHITECTURE.get(str(raw.get("model_type")))]
    architecture = named[0]
    if len(named) != 1 or architecture not in SUPPORTED_ARCHITECTURES:
        shown = ", ".join(map(str, named)) if raw.get("architectures") else raw.get("model_type")
        raise UnsupportedModel(
            f"architecture {shown!r} is not supported; supported are "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if "AutoModelForCausalLM" in (raw.get("auto_map") or {}):
        raise UnsupportedModel("the model brings code of its own (auto_map), which is never run")
    return str(architecture)


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    for key, neutral in _NEUTRAL_ONLY.items():
        value = raw.get(key)
        if value not in neutral:
            allowed = " or ".join(repr(item) for item in neutral if item is not None)
            way_out = f"only {allowed} is" if allowed else "use a checkpoint without it"
            raise UnsupportedModel(f"{key} = {_shorten(value)} is not supported: {way_out}")
    for key, value in raw.items():
        if key in _NEUTRAL_ONLY or key in _KNOWN or not _SUSPICIOUS.search(key):
            continue
        if value not in (None, False, 0, 1, 1.0, [], {}):
            raise UnsupportedModel(
                f"{key} = {_shorten(value)} is not supported: it may change what the model computes"
            )
    if raw.get("rope_interleaved"):
        raise UnsupportedModel("rope_interleaved = True is not supported: only halves are rotated")


def _rope_of(raw: dict[str, Any]) -> RopeConfig:
    # Version 5 merges both spellings; a theta inside the parameters wins.
    parameters = dict(raw.get("rope_scaling") or {})
    parameters.update(raw.get("rope_parameters") or {})
    kind = parameters.pop("rope_type", None) or parameters.get("type") or "default"
    parameters.pop("type", None)
    theta = float(parameters.pop("rope_theta", None) or raw.get("rope_theta") or _THETA)
    partial = parameters.pop("partial_rotary_factor", None)
    if partial not in (None, 1, 1.0):
        raise UnsupportedModel(f"partial_rotary_factor = {partial} is not supported: only 1 is")
    if kind not in _ROPE_KEYS:
        raise UnsupportedModel(
            f"rope type {kind!r} is not supported; supported are {', '.join(_ROPE_KEYS)}"
        )
    extra = sorted(
        key for key in parameters.keys() - _ROPE_KEYS[kind] if parameters[key] is not None
    )
    if kind != "default" and extra:
        raise UnsupportedModel(f"rope parameters {extra} of rope type {kind!r} are not supported")
    if kind == "default" and any(isinstance(parameters[key], dict) for key in extra):
        raise UnsupportedModel(f"rope parameters per layer type ({extra}) are not supported")
    try:
        return _build_rope(kind, theta, parameters)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidConfig(f"rope type {kind!r} has missing or bad parameters: {error}") from error


def _build_rope(kind: str, theta: float, parameters: dict[str, Any]) -> RopeConfig:
    if kind == "linear":
        return RopeConfig(theta, linear_factor=float(parameters["factor"]))
    if kind == "llama3":
        scaling = Llama3Scaling(
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_context_length=int(parameters["original_max_position_embeddings"]),
        )
        return RopeConfig(theta, llama3=scaling)
    return RopeConfig(theta)


def _windows_of(
    raw: dict[str, Any], num_layers: int, *, is_qwen: bool, architecture: str
) -> tuple[int | None, ...]:
    window = raw.get("sliding_window")
    if architecture == "LlamaForCausalLM" or (is_qwen and not raw.get("use_sliding_window")):
        window = None
    elif not is_qwen and "sliding_window" not in raw:
        window = 4096  # transformers' default for Mistral
    if window is not None and (not isinstance(window, int) or window < 1):
        raise InvalidConfig(f"sliding_window is {window!r}; it must be a positive integer or null")
    types = raw.get("layer_types")
    if types is None:
        first = int(raw.get("max_window_layers", 28)) if is_qwen else 0
        return tuple(window if layer >= first else None for layer in range(num_layers))
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown or len(types) != num_layers:
        raise UnsupportedModel(
            f"layer_types names {unknown or len(types)} for {num_layers} layers; supported are "
            "full_attention and sliding_attention, one for each layer"
        )
    if "sliding_attention" in types and window is None:
        raise UnsupportedModel("layer_types has sliding_attention, but no sliding_window is in use")
    if not is_qwen and window is not None and "full_attention" in types:
        raise UnsupportedModel(
            f"layer_types with full_attention is not supported in {architecture}"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(item) for item in (value if isinstance(value, list) else [value]))


def _dtype_of(raw: dict[str, Any]) -> DType | None:
    name = raw.get("dtype") or raw.get("torch_dtype")
    try:
        return DType.parse(str(name))
    except ValueError:
        return None


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
