"""The equations of a decoder layer of the Llama family, between its attentions.

    before attention                       after attention
    h       = norm(x)                      x      += W_o o
    q, k, v = W_qkv h (+ b)                h       = norm(x)
    q, k    = norm_head(q), norm_head(k)   g, u    = W_gate h, W_up h
    q, k    = rope(q), rope(k)             x      += W_down (silu(g) * u)

x, the residual, is float32 [rows, hidden] and may be updated in place. Products run in the dtype of
the weights (`products`); norms and rope in float32. `Buffers` keeps what lies between.
"""

import torch

from glinthawk.models.config import ModelConfig
from glinthawk.models.weights import LayerWeights
from glinthawk.stage.buffers import Buffers
from glinthawk.stage.products import build_products
from glinthawk.stage.rope import rotate
from glinthawk.stage.threads import threads_for


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor
) -> torch.Tensor:
    """Write x / sqrt(mean(x^2) + eps) * weight over the last dimension of float32 x into `out`.

    `out` may be x itself. If it is narrower than float32, only the result is rounded.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
    scaled = torch.mul(x, scale, out=out if out.dtype is x.dtype else torch.empty_like(x))
    return torch.mul(scaled, weight, out=out)


class Layer:
    """One layer: its norms, its products, and the two halves of its equations."""

    def __init__(self, config: ModelConfig, weights: LayerWeights, buffers: Buffers) -> None:
        self._config = config
        self._buffers = buffers
        self._products = build_products(weights, buffers)
        self._dtype = weights.qkv.dtype
        self._input_norm, self._post_norm = weights.input_norm, weights.post_norm
        self._q_norm, self._k_norm = weights.q_norm, weights.k_norm

    def before_attention(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """Return q, k and v of every row as `dtype`: a new [rows, (Hq + 2 Hkv) D].

        x: float32 [rows, hidden]. angles: cos and sin, [rows, D / 2].
        """
        with threads_for(x):
            h = self._norm(x, self._input_norm)
        product = self._products.qkv(h)
        with threads_for(x):
            return self._position(product, angles, dtype)

    def after_attention(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        """Return x plus the output projection of o [rows, Hq D] and the feed-forward.

        x may be changed, or be what is returned.
        """
        with threads_for(x):
            o = o.to(self._dtype)
        x = self._products.add_output(x, o)
        with threads_for(x):
            h = self._norm(x, self._post_norm)
        return self._products.add_feed_forward(x, h)

    def _position(
        self,
        product: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return q, k (normed where the model does, and rotated) and v, as a new `dtype` tensor."""
        config = self._config
        rows, rotated_size = len(product), config.query_size + config.kv_size
        heads = (rows, config.num_query_heads + config.num_kv_heads, config.head_dim)
        qk = self._buffers.take("qk", (rows, rotated_size), torch.float32)
        qk = qk.copy_(product[:, :rotated_size]).view(heads)
        if self._q_norm is not None and self._k_norm is not None:
            q, k = qk[:, : config.num_query_heads], qk[:, config.num_query_heads :]
            rms_norm(q, self._q_norm, config.norm_eps, out=q)
            rms_norm(k, self._k_norm, config.norm_eps, out=k)
        out = torch.empty(rows, config.qkv_size, dtype=dtype, device=product.device)
        target = out[:, :rotated_size].view(heads)
        if dtype is torch.float32:
            rotate(qk, *angles, out=target)
        else:
            rotated = self._buffers.take("rotated", (rows, rotated_size), torch.float32)
            target.copy_(rotate(qk, *angles, out=rotated.view(heads)))
        out[:, rotated_size:].copy_(product[:, rotated_size:])
        return out

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        h = self._buffers.take("norm", (len(x), self._config.hidden_size), self._dtype)
        return rms_norm(x, weight, self._config.norm_eps, out=h)
