"""Tiny models of every family: transformers' own modules, and ours with the same weights."""

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from glinthawk.core.dtype import DType
from glinthawk.core.ids import LaneId
from glinthawk.core.step import StepKind, StepPlan
from glinthawk.models.config import Llama3Scaling, ModelConfig, RopeConfig
from glinthawk.models.weights import LayerWeights, StageWeights
from glinthawk.stage.device import ComputePolicy

FLOAT32 = ComputePolicy(torch.device("cpu"), DType.FLOAT32, torch.float32)

LLAMA3 = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=64
)

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}


def build_reference(family: str) -> tuple[PreTrainedModel, ModelConfig]:
    """Return a random model of transformers and the shape that we read from it."""
    torch.manual_seed(len(family))
    if family in ("llama", "llama3", "linear", "biased"):
        extra: dict[str, object] = {}
        if family == "llama3":
            extra["rope_parameters"] = {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": LLAMA3.factor,
                "low_freq_factor": LLAMA3.low_freq_factor,
                "high_freq_factor": LLAMA3.high_freq_factor,
                "original_max_position_embeddings": LLAMA3.original_context_length,
            }
        if family == "linear":
            extra["rope_parameters"] = {
                "rope_type": "linear",
                "rope_theta": 10000.0,
                "factor": 4.0,
            }
        if family == "biased":
            extra.update(attention_bias=True, mlp_bias=True)
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**SIZES, **extra))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=9, head_dim=8))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval(), _shape(family, model)


def _shape(family: str, model: PreTrainedModel) -> ModelConfig:
    config = model.config
    layers = config.num_hidden_layers
    return ModelConfig(
        architecture=type(model).__name__,
        num_layers=layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_query_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=16 if family == "qwen3" else 8,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope=RopeConfig(
            theta=config.rope_parameters["rope_theta"],
            linear_factor=4.0 if family == "linear" else 1.0,
            llama3=LLAMA3 if family == "llama3" else None,
        ),
        windows=((9,) if family == "mistral" else (None,)) * layers,
        qkv_bias=family in ("qwen2", "biased"),
        output_bias=family == "biased",
        mlp_bias=family == "biased",
        qk_norm=family == "qwen3",
        tied_embeddings=family == "qwen2",
    )


def build_weights(model: PreTrainedModel, first: int, last: int) -> StageWeights:
    """Return the weights of the layers [first, last) of a model of transformers."""
    state = model.state_dict()
    total = model.config.num_hidden_layers
    return StageWeights(
        first=first,
        last=last,
        layers=[_layer(state, f"model.layers.{layer}.") for layer in range(first, last)],
        embedding=state["model.embed_tokens.weight"] if first == 0 else None,
        final_norm=state["model.norm.weight"] if last == total else None,
        lm_head=state["lm_head.weight"] if last == total else None,
    )


def _layer(state: dict[str, torch.Tensor], prefix: str) -> LayerWeights:
    def fused(kind: str, *names: str) -> torch.Tensor | None:
        parts = [state.get(f"{prefix}{name}_proj.{kind}") for name in names]
        return torch.cat([p for p in parts if p is not None]) if parts[0] is not None else None

    def matrix(*names: str) -> torch.Tensor:
        weight = fused("weight", *names)
        assert weight is not None
        return weight

    qkv = ("self_attn.q", "self_attn.k", "self_attn.v")
    return LayerWeights(
        input_norm=state[prefix + "input_layernorm.weight"],
        qkv=matrix(*qkv),
        qkv_bias=fused("bias", *qkv),
        q_norm=state.get(prefix + "self_attn.q_norm.weight"),
        k_norm=state.get(prefix + "self_attn.k_norm.weight"),
        output=matrix("self_attn.o"),
        output_bias=fused("bias", "self_attn.o"),
        post_norm=state[prefix + "post_attention_layernorm.weight"],
        gate_up=matrix("mlp.gate", "mlp.up"),
        gate_up_bias=fused("bias", "mlp.gate", "mlp.up"),
        down=matrix("mlp.down"),
        down_bias=fused("bias", "mlp.down"),
    )


def prefill_plan(starts: list[int], counts: list[int]) -> StepPlan:
    """Return a prefill step of sequences 0, 1, ... with any tokens."""
    return StepPlan(
        kind=StepKind.PREFILL,
        lane=LaneId(0),
        step=0,
        worker="worker",
        sequences=np.arange(len(counts), dtype=np.uint64),
        starts=np.array(starts, dtype=np.uint32),
        counts=np.array(counts, dtype=np.uint32),
        samples=np.ones(len(counts), dtype=np.bool_),
        tokens=np.zeros(sum(counts), dtype=np.uint32),
    )


def dense_attention(
    config: ModelConfig, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Attend the last len(q) positions of one sequence, straight from the definition.

    q: [queries, Hq D]. k, v: [tokens, Hkv D]. Returns [queries, Hq D].
    """
    queries, tokens, size = len(q), len(k), config.head_dim
    group = config.num_query_heads // config.num_kv_heads
    q = q.view(queries, -1, size).double()
    k = k.view(tokens, -1, size).double().repeat_interleave(group, dim=1)
    v = v.view(tokens, -1, size).double().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * config.attention_scale
    distance = torch.arange(tokens - queries, tokens)[:, None] - torch.arange(tokens)
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=2)
    return torch.einsum("hqk,khd->qhd", weights, v).reshape(queries, -1).float()
