"""The matrix products of a layer and of the output head, in the way that suits the processor.

    qkv(h)            W_qkv h (+ b)
    output(o)         W_o o (+ b)
    feed_forward(h)   W_down (silu(W_gate h) * (W_up h)) (+ b)

Two ways:

    turned    any device: features are rows, [features, rows]. The weight is the left factor, which
              MKL packs with less work where rows are few beside the weight's; gate and up are
              contiguous, and the down product takes them as they are.
    packed    CPUs with bfloat16 products: weights in the layout that oneDNN computes in, made
              once, and silu and the multiplication by gate in the products themselves (ADR 0014).

What a method returns is valid until the next call of any.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as functional

from glinthawk.models.weights import LayerWeights
from glinthawk.stage.buffers import Buffers

HEAD_TOKENS = 1024
"""Tokens whose logits a CPU computes at a time: their block is turned while it is in the cache."""

PACKED_HEAD_TOKENS = 16384
"""The same for packed products, which leave less to do to a block and less to wait for."""


class LayerProducts(ABC):
    """The products of one layer. Rows come and go as [rows, features], in the weights' dtype."""

    @abstractmethod
    def qkv(self, h: torch.Tensor) -> torch.Tensor:
        """Return q, k and v of h [rows, hidden], before norms and rope: [rows, (Hq + 2 Hkv) D]."""

    @abstractmethod
    def output(self, o: torch.Tensor) -> torch.Tensor:
        """Return the output projection of o [rows, Hq D]: [rows, hidden]."""

    @abstractmethod
    def feed_forward(self, h: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward network of h [rows, hidden]: [rows, hidden]."""


class Head(ABC):
    """The output head."""

    @abstractmethod
    def write(self, h: torch.Tensor, *, out: torch.Tensor) -> None:
        """Write the logits of h [rows, hidden] into float32 `out` [rows, vocabulary]."""


class TurnedProducts(LayerProducts):
    """Products with features as rows, on any device."""

    def __init__(self, weights: LayerWeights, buffers: Buffers) -> None:
        self._weights = weights
        self._buffers = buffers
        self._intermediate_size = len(weights.gate_up) // 2

    def qkv(self, h: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        return self._product("qkv_t", self._weights.qkv, h, self._weights.qkv_bias).t()

    def output(self, o: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        return self._product("hidden_t", self._weights.output, o, self._weights.output_bias).t()

    def feed_forward(self, h: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        weights, size = self._weights, self._intermediate_size
        gate_up = self._product("gate_up_t", weights.gate_up, h, weights.gate_up_bias)
        gate, up = gate_up[:size], gate_up[size:]
        functional.silu(gate, inplace=True).mul_(up)
        return self._product("hidden_t", weights.down, gate.t(), weights.down_bias).t()

    def _product(
        self, name: str, weight: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return weight y^T (+ bias) as [out, rows], in the buffer `name`. y: [rows, in]."""
        out = self._buffers.take(name, (len(weight), len(y)), weight.dtype)
        if bias is None:
            return torch.mm(weight, y.t(), out=out)
        return torch.addmm(bias[:, None], weight, y.t(), out=out)


class PackedProducts(LayerProducts):
    """Products of oneDNN over packed weights; keeps nothing of `weights` but biases."""

    def __init__(self, weights: LayerWeights) -> None:
        size = len(weights.gate_up) // 2
        gate_bias = up_bias = None
        if weights.gate_up_bias is not None:
            gate_bias, up_bias = weights.gate_up_bias[:size], weights.gate_up_bias[size:]
        self._qkv = _Packed(weights.qkv, weights.qkv_bias)
        self._output = _Packed(weights.output, weights.output_bias)
        self._gate = _Packed(weights.gate_up[:size], gate_bias)
        self._up = _Packed(weights.gate_up[size:], up_bias)
        self._down = _Packed(weights.down, weights.down_bias)

    def qkv(self, h: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        return self._qkv.times(h)

    def output(self, o: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        return self._output.times(o)

    def feed_forward(self, h: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        gate = self._gate.times(h, then="swish")
        return self._down.times(self._up.times_each(h, gate))


class _Packed:
    """A weight [out, in] as oneDNN holds it, and its bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def times(self, y: torch.Tensor, then: str = "none") -> torch.Tensor:
        """Return y [rows, in] times the weight (+ bias), new [rows, out]. then: none or swish."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            y, self._weight, self._bias, then, [], ""
        )
        return result

    def times_each(self, y: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Return y times the weight (+ bias), each element times that of `factor` [rows, out]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            y, factor, self._weight, self._bias, "mul"
        )
        return result


class TurnedHead(Head):
    """The head with features as rows; on a CPU in blocks of `HEAD_TOKENS`."""

    def __init__(self, weight: torch.Tensor, buffers: Buffers) -> None:
        self._weight = weight
        self._buffers = buffers
        self._step = HEAD_TOKENS if weight.device.type == "cpu" else len(weight)

    def write(self, h: torch.Tensor, *, out: torch.Tensor) -> None:
        """See `Head`."""
        for first in range(0, len(self._weight), self._step):
            weight = self._weight[first : first + self._step]
            part = self._buffers.take("logits_t", (len(weight), len(h)), weight.dtype)
            torch.mm(weight, h.t(), out=part)
            out[:, first : first + len(weight)].copy_(part.t())


class PackedHead(Head):
    """The head of oneDNN over packed blocks of `PACKED_HEAD_TOKENS`."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._parts = [_Packed(part) for part in torch.split(weight, PACKED_HEAD_TOKENS)]

    def write(self, h: torch.Tensor, *, out: torch.Tensor) -> None:
        """See `Head`."""
        blocks = torch.split(out, PACKED_HEAD_TOKENS, dim=1)
        for part, block in zip(self._parts, blocks, strict=True):
            block.copy_(part.times(h))


def can_pack(weight: torch.Tensor) -> bool:
    """Tell whether products of this weight are faster packed: bfloat16, on a CPU that has its
    instructions, with a torch that offers oneDNN's."""
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.bfloat16
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def build_products(weights: LayerWeights, buffers: Buffers) -> LayerProducts:
    """Return the products of a layer in the faster way; packed ones keep a copy of their own."""
    return PackedProducts(weights) if can_pack(weights.qkv) else TurnedProducts(weights, buffers)


def build_head(weight: torch.Tensor, buffers: Buffers) -> Head:
    """Return the output head of `weight` [vocabulary, hidden] in the faster way."""
    return PackedHead(weight) if can_pack(weight) else TurnedHead(weight, buffers)
