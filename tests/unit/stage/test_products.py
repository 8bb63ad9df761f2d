"""Both ways of the products, against the equations in float64."""

import pytest
import torch
import torch.nn.functional as functional

from glinthawk.models.weights import LayerWeights
from glinthawk.stage.buffers import Buffers
from glinthawk.stage.products import (
    HEAD_TOKENS,
    Head,
    LayerProducts,
    PackedHead,
    PackedProducts,
    TurnedHead,
    TurnedProducts,
    can_pack,
)
from unit.stage.factories import build_reference, build_weights

CPU = torch.device("cpu")
ROWS = (1, 2, 17, 64, 300)
FAMILIES = ("llama", "biased")
WAYS = ("turned", "packed")


def build_layer(family: str) -> LayerWeights:
    model, _ = build_reference(family)
    return build_weights(model.to(torch.bfloat16), 0, 1).layers[0]


def build_products(way: str, weights: LayerWeights) -> LayerProducts:
    if way == "turned":
        return TurnedProducts(weights, Buffers(CPU))
    if not can_pack(weights.qkv):
        pytest.skip("this CPU has no bfloat16 products, or torch no oneDNN")
    return PackedProducts(weights)


def build_head(way: str, weight: torch.Tensor) -> Head:
    if way == "turned":
        return TurnedHead(weight, Buffers(CPU))
    if not can_pack(weight):
        pytest.skip("this CPU has no bfloat16 products, or torch no oneDNN")
    return PackedHead(weight)


def multiply(y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = y.double() @ weight.double().t()
    return product if bias is None else product + bias.double()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_products_are_those_of_the_equations(way: str, family: str) -> None:
    weights = build_layer(family)
    products = build_products(way, weights)
    intermediate_size = len(weights.gate_up) // 2
    for rows in ROWS:
        h = torch.randn(rows, weights.qkv.shape[1]).to(torch.bfloat16)
        o = torch.randn(rows, weights.output.shape[1]).to(torch.bfloat16)
        assert_near(products.qkv(h), multiply(h, weights.qkv, weights.qkv_bias), 0.01)
        assert_near(products.output(o), multiply(o, weights.output, weights.output_bias), 0.01)
        gate_up = multiply(h, weights.gate_up, weights.gate_up_bias)
        gate, up = gate_up.split(intermediate_size, dim=1)
        expected = multiply(functional.silu(gate) * up, weights.down, weights.down_bias)
        assert_near(products.feed_forward(h), expected, 0.03)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vocab_size", [40, HEAD_TOKENS, 2 * HEAD_TOKENS + 7])
@torch.inference_mode()
def test_a_head_writes_every_logit(way: str, vocab_size: int) -> None:
    weight = torch.randn(vocab_size, 48).to(torch.bfloat16)
    head = build_head(way, weight)
    for rows in (1, 33):
        h = torch.randn(rows, 48).to(torch.bfloat16)
        logits = torch.full((rows, vocab_size), torch.nan)
        head.write(h, out=logits)
        assert_near(logits, multiply(h, weight, None), 0.01)


@torch.inference_mode()
def test_packed_weights_outlive_what_they_were_made_of() -> None:
    weights = build_layer("llama")
    products = build_products("packed", weights)
    h = torch.randn(5, weights.qkv.shape[1]).to(torch.bfloat16)
    before = products.qkv(h)
    weights.qkv.zero_()
    assert torch.equal(products.qkv(h), before)


def test_only_bfloat16_on_a_cpu_is_packed() -> None:
    assert not can_pack(torch.zeros(8, 8))
    assert not can_pack(torch.zeros(8, 8, dtype=torch.float16))
