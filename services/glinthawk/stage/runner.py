"""A stage's share of the model: rows in, rows out, and nothing of lanes, frames or requests.

Rows of any number of lanes go through a layer together; a row knows only its residual and its
position. The residual is float32 and belongs to the caller; it may be changed, and what comes back
takes its place. Logits lie in a buffer of the runner: they are valid until the next call.

One thread calls a runner. Inside, autograd is off (`torch.inference_mode`).
"""

import torch

from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig, InvariantBroken
from glinthawk.models.config import ModelConfig
from glinthawk.models.weights import StageWeights
from glinthawk.stage.buffers import Buffers
from glinthawk.stage.device import ComputePolicy
from glinthawk.stage.layers import Layer, rms_norm
from glinthawk.stage.products import build_head
from glinthawk.stage.rope import RopeTable


class SegmentRunner:
    """Computes the layers [first, last) of a model, those in `weights`, except attention.

    weights: matrices in `policy.products` on `policy.device`, norms in float32. Its layers are
    taken out of it: where products are packed, a layer's matrices are given back with it.
    num_positions: one more than the highest position that will be asked for.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: StageWeights,
        policy: ComputePolicy,
        *,
        num_positions: int,
    ) -> None:
        self._config = config
        self._policy = policy
        self._first_layer = weights.first
        self._embedding = weights.embedding
        self._final_norm = weights.final_norm
        self._buffers = Buffers(policy.device)
        _check_weights(weights, policy)
        layers = weights.layers
        self._layers = [
            Layer(config, layers.pop(0), self._buffers) for _ in range(weights.first, weights.last)
        ]
        self._head = None
        if weights.lm_head is not None:
            self._head = build_head(weights.lm_head, self._buffers)
        self._rope = RopeTable(
            config.rope.inverse_frequencies(config.head_dim), num_positions, policy.device
        )

        # The layers of a step ask for the angles of the same rows.
        self._positions = torch.empty(0, dtype=torch.int64)
        self._angles = self._rope.at(self._positions.to(policy.device))

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._policy.device

    @property
    def wire_dtype(self) -> DType:
        """Format of q, k, v and o."""
        return self._policy.wire

    @property
    def activation_dtype(self) -> torch.dtype:
        """Format of q, k, v and o, as torch names it."""
        return self._policy.activations

    @property
    def first_layer(self) -> int:
        """The first layer of this stage."""
        return self._first_layer

    @property
    def last_layer(self) -> int:
        """The layer behind this stage's last one."""
        return self._first_layer + len(self._layers)

    @property
    def is_first(self) -> bool:
        """Whether this stage holds the embedding of inputs."""
        return self._first_layer == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage holds the output head."""
        return self.last_layer == self._config.num_layers

    @property
    def hidden_size(self) -> int:
        """Width of the residual."""
        return self._config.hidden_size

    @property
    def output_width(self) -> int:
        """Width of a row of attention's output, and of q."""
        return self._config.query_size

    @torch.inference_mode()
    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the residual of int64 `tokens` [rows]: a new float32 [rows, hidden]."""
        if self._embedding is None:
            raise InvariantBroken("embed was called on a stage without the embedding")
        return self._embedding.index_select(0, tokens).to(torch.float32)

    @torch.inference_mode()
    def before_attention(
        self,
        layer: int,
        residual: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Return q, k, v of `layer` for every row: [rows, (Hq + 2 Hkv) D], activation dtype.

        positions: int64 [rows]. The result is new memory, which nobody writes to again.
        """
        if positions is not self._positions:
            self._positions, self._angles = positions, self._rope.at(positions)
        return self._layer(layer).before_attention(residual, self._angles, self._policy.activations)

    @torch.inference_mode()
    def after_attention(
        self, layer: int, residual: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """Finish `layer` with attention's output [rows, Hq D]; return the new residual."""
        return self._layer(layer).after_attention(residual, output)

    @torch.inference_mode()
    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """Return the logits of every row: float32 [rows, vocabulary]."""
        if self._head is None or self._final_norm is None:
            raise InvariantBroken("logits was called on a stage without the output head")
        rows = len(residual)
        h = self._buffers.take("norm", (rows, self._config.hidden_size), self._policy.products)
        rms_norm(residual, self._final_norm, self._config.norm_eps, out=h)
        logits = self._buffers.take("logits", (rows, self._config.vocab_size), torch.float32)
        self._head.write(h, out=logits)
        return logits

    def _layer(self, layer: int) -> Layer:
        if not self._first_layer <= layer < self.last_layer:
            raise InvariantBroken(
                f"layer {layer} is not on this stage, which holds layers {self._first_layer} "
                f"to {self.last_layer - 1}"
            )
        return self._layers[layer - self._first_layer]


def _check_weights(weights: StageWeights, policy: ComputePolicy) -> None:
    """Refuse weights that were not loaded for this policy."""
    matrices = [layer.qkv for layer in weights.layers]
    matrices += [matrix for matrix in (weights.embedding, weights.lm_head) if matrix is not None]
    for matrix in matrices:
        if (matrix.dtype, matrix.device.type) != (policy.products, policy.device.type):
            raise InvalidConfig(
                f"a weight is {matrix.dtype} on {matrix.device}, and this stage computes in "
                f"{policy.products} on {policy.device}; load it so"
            )
