"""The weights of one stage: only its own layers are ever read from the checkpoint.

Each fused matrix is allocated once and its parts are read straight into it, so that loading
peaks at the stage's own weights and one piece (64 MiB) of a tensor.
"""

from dataclasses import dataclass

import torch

from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.config import ModelConfig
from glinthawk.models.source import ModelFiles
from glinthawk.models.tensor_names import (
    FINAL_NORM,
    LAYER_NAME,
    name_embedding,
    name_lm_head,
)
from glinthawk.models.tensors import TensorSource, open_tensors

_IGNORED = frozenset({"self_attn.rotary_emb.inv_freq"})


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; matrices are [out, in], norms are float32.

    input_norm  [hidden]                    post_norm    [hidden]
    qkv         [(Hq + 2 Hkv) D, hidden]    gate_up      [2 inter, hidden]  gate, then up
    qkv_bias    [(Hq + 2 Hkv) D] or None    gate_up_bias [2 inter] or None
    q_norm      [D] or None                 down         [hidden, inter]
    k_norm      [D] or None                 down_bias    [hidden] or None
    output      [hidden, Hq D]
    output_bias [hidden] or None
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


@dataclass(frozen=True)
class StageWeights:
    """What a stage with the layers [first, last) holds.

    embedding [vocab, hidden]: on the first stage. final_norm [hidden], lm_head [vocab, hidden]:
    on the last stage. With tied embeddings a stage that is first and last holds one tensor as
    both (a head that is packed on a CPU is a second one, see stage/products.py).
    """

    first: int
    last: int
    layers: list[LayerWeights]
    embedding: torch.Tensor | None = None
    final_norm: torch.Tensor | None = None
    lm_head: torch.Tensor | None = None


# Seven arguments: what to read (four) and how to hold it (three).
def load_stage_weights(
    files: ModelFiles,
    config: ModelConfig,
    first: int,
    last: int,
    *,
    weight_dtype: torch.dtype,
    device: torch.device | str = "cpu",
    rounded_to: torch.dtype | None = None,
) -> StageWeights:
    """Read the weights of the layers [first, last), held as `weight_dtype` on `device`.

    rounded_to: round matrices and biases to this format first (a CPU that is slow in bfloat16
    holds such weights as float32).

    Raises:
        InvalidConfig: a tensor is missing, has another shape than the config says, or does not
            fit the range of `weight_dtype`.
        UnsupportedModel: a layer has a tensor, or a number format, that is not computed here.
    """
    if not 0 <= first < last <= config.num_layers:
        raise InvalidConfig(
            f"layers [{first}, {last}) do not exist: the model has {config.num_layers} layers"
        )
    source = open_tensors(files, config)
    reader = _Reader(source, weight_dtype, torch.device(device), rounded_to)
    _refuse_unknown_tensors(source.names(), config, first, last)
    layers = [_read_layer(reader, config, layer) for layer in range(first, last)]
    shape = (config.vocab_size, config.hidden_size)
    embedding_name = name_embedding(config, source.names())
    embedding = reader.matrix([(embedding_name, shape)]) if first == 0 else None
    if last < config.num_layers:
        return StageWeights(first, last, layers, embedding)
    head_name = name_lm_head(config, source.names())
    if embedding is not None and head_name == embedding_name:
        lm_head = embedding
    else:
        lm_head = reader.matrix([(head_name, shape)])
    final_norm = reader.norm(FINAL_NORM, config.hidden_size)
    return StageWeights(first, last, layers, embedding, final_norm, lm_head)


def _read_layer(reader: "_Reader", config: ModelConfig, layer: int) -> LayerWeights:
    prefix = f"model.layers.{layer}."
    hidden, inter = config.hidden_size, config.intermediate_size
    qkv = [
        (f"{prefix}self_attn.q_proj", config.query_size),
        (f"{prefix}self_attn.k_proj", config.kv_size),
        (f"{prefix}self_attn.v_proj", config.kv_size),
    ]
    output = [(f"{prefix}self_attn.o_proj", hidden)]
    gate_up = [(f"{prefix}mlp.gate_proj", inter), (f"{prefix}mlp.up_proj", inter)]
    down = [(f"{prefix}mlp.down_proj", hidden)]
    q_norm = k_norm = None
    if config.qk_norm:
        q_norm = reader.norm(f"{prefix}self_attn.q_norm.weight", config.head_dim)
        k_norm = reader.norm(f"{prefix}self_attn.k_norm.weight", config.head_dim)
    return LayerWeights(
        input_norm=reader.norm(f"{prefix}input_layernorm.weight", hidden),
        qkv=reader.weight(qkv, hidden),
        qkv_bias=reader.bias(qkv) if config.qkv_bias else None,
        q_norm=q_norm,
        k_norm=k_norm,
        output=reader.weight(output, config.query_size),
        output_bias=reader.bias(output) if config.output_bias else None,
        post_norm=reader.norm(f"{prefix}post_attention_layernorm.weight", hidden),
        gate_up=reader.weight(gate_up, hidden),
        gate_up_bias=reader.bias(gate_up) if config.mlp_bias else None,
        down=reader.weight(down, inter),
        down_bias=reader.bias(down) if config.mlp_bias else None,
    )


class _Reader:
    """Reads tensors, one below the other, into one that it allocates."""

    def __init__(
        self,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        rounded_to: torch.dtype | None,
    ) -> None:
        self._source = source
        self._names = source.names()
        self._dtype = dtype
        self._device = device
        self._rounded_to = rounded_to

    def weight(self, parts: list[tuple[str, int]], num_inputs: int) -> torch.Tensor:
        """Return the weights of the projections `parts` (name, rows), [sum of rows, inputs]."""
        return self.matrix([(f"{name}.weight", (rows, num_inputs)) for name, rows in parts])

    def bias(self, parts: list[tuple[str, int]]) -> torch.Tensor:
        """Return the biases of the projections `parts` (name, rows), [sum of rows]."""
        return self.matrix([(f"{name}.bias", (rows,)) for name, rows in parts])

    def norm(self, name: str, size: int) -> torch.Tensor:
        """Return a norm's weight in float32, [size]."""
        result = torch.empty((size,), dtype=torch.float32, device=self._device)
        self._read_into(name, result, rounded_to=None)
        return result

    def matrix(self, parts: list[tuple[str, tuple[int, ...]]]) -> torch.Tensor:
        """Return the tensors `parts` (name, shape), one below the other."""
        for name, shape in parts:
            self._check(name, shape)
        num_rows = sum(shape[0] for _, shape in parts)
        result = torch.empty((num_rows, *parts[0][1][1:]), dtype=self._dtype, device=self._device)
        at = 0
        for name, shape in parts:
            self._read_into(name, result[at : at + shape[0]], rounded_to=self._rounded_to)
            at += shape[0]
        return result

    def _read_into(
        self, name: str, target: torch.Tensor, *, rounded_to: torch.dtype | None
    ) -> None:
        self._check(name, tuple(target.shape))
        for start, rows in self._source.pieces(name):
            values = rows if rounded_to is None else rows.to(rounded_to)
            part = target[start : start + len(rows)]
            part.copy_(values)
            if target.dtype == torch.float16 and not bool(torch.isfinite(part).all()):
                raise InvalidConfig(
                    f"tensor {name} has values beyond float16's range (65504): use bfloat16 or "
                    "float32"
                )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._names:
            raise InvalidConfig(f"the checkpoint has no tensor {name} (expected {list(shape)})")
        actual = self._source.shape(name)
        if actual != shape:
            raise InvalidConfig(
                f"tensor {name} has the shape {list(actual)}; the config says {list(shape)}"
            )


def _refuse_unknown_tensors(
    names: frozenset[str], config: ModelConfig, first: int, last: int
) -> None:
    known = {"input_layernorm.weight", "post_attention_layernorm.weight", *_IGNORED}
    biased = {
        "q_proj": config.qkv_bias,
        "k_proj": config.qkv_bias,
        "v_proj": config.qkv_bias,
        "o_proj": config.output_bias,
    }
    for projection, has_bias in biased.items():
        known.add(f"self_attn.{projection}.weight")
        if has_bias:
            known.add(f"self_attn.{projection}.bias")
    for projection in ("gate_proj", "up_proj", "down_proj"):
        known.add(f"mlp.{projection}.weight")
        if config.mlp_bias:
            known.add(f"mlp.{projection}.bias")
    if config.qk_norm:
        known |= {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    for name in sorted(names):
        match = LAYER_NAME.fullmatch(name)
        if match and first <= int(match[1]) < last and match[2] not in known:
            raise UnsupportedModel(
                f"tensor {name} has no place in {config.architecture} with this config"
            )
