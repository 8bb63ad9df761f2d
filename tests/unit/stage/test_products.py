"""Both ways of the products, in each format, against the equations in float64."""

import pytest
import torch
import torch.nn.functional as functional

from glinthawk.errors import InvariantBroken
from glinthawk.models.weights import LayerWeights
from glinthawk.stage.buffers import Buffers
from glinthawk.stage.products import (
    HEAD_TOKENS,
    PACKED_HEAD_TOKENS,
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
NO_PACKING = "this CPU has no products in this format, or torch no oneDNN"
TOLERANCES = {torch.bfloat16: 0.01, torch.float32: 1e-5}


def build_layer(family: str, dtype: torch.dtype) -> LayerWeights:
    model, _ = build_reference(family)
    return build_weights(model.to(dtype), 0, 1).layers[0]


def build_products(way: str, weights: LayerWeights) -> LayerProducts:
    if way == "turned":
        return TurnedProducts(weights, Buffers(CPU))
    if not can_pack(weights.qkv):
        pytest.skip(NO_PACKING)
    return PackedProducts(weights)


def build_head(way: str, weight: torch.Tensor) -> Head:
    if way == "turned":
        return TurnedHead(weight, Buffers(CPU))
    if not can_pack(weight):
        pytest.skip(NO_PACKING)
    return PackedHead(weight)


def multiply(y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = y.double() @ weight.double().t()
    return product if bias is None else product + bias.double()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_products_are_those_of_the_equations(way: str, dtype: torch.dtype, family: str) -> None:
    weights, tolerance = build_layer(family, dtype), TOLERANCES[dtype]
    products = build_products(way, weights)
    intermediate_size = len(weights.gate_up) // 2
    for rows in ROWS:
        x = torch.randn(rows, len(weights.output))
        h = torch.randn(rows, weights.qkv.shape[1]).to(dtype)
        o = torch.randn(rows, weights.output.shape[1]).to(dtype)
        assert_near(products.qkv(h), multiply(h, weights.qkv, weights.qkv_bias), tolerance)
        output = multiply(o, weights.output, weights.output_bias)
        assert_near(products.add_output(x.clone(), o).double() - x, output, tolerance)
        gate_up = multiply(h, weights.gate_up, weights.gate_up_bias)
        gate, up = gate_up.split(intermediate_size, dim=1)
        forward = multiply(functional.silu(gate) * up, weights.down, weights.down_bias)
        added = products.add_feed_forward(x.clone(), h)
        assert added.dtype is torch.float32
        assert_near(added.double() - x, forward, 3 * tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rows", [1, 3, 9])
@torch.inference_mode()
def test_a_residual_of_other_rows_is_refused(way: str, dtype: torch.dtype, rows: int) -> None:
    weights = build_layer("llama", dtype)
    products = build_products(way, weights)
    x = torch.zeros(rows, len(weights.output))
    o = torch.zeros(5, weights.output.shape[1], dtype=dtype)
    with pytest.raises((InvariantBroken, RuntimeError)):
        products.add_output(x, o)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("vocab_size", [40, HEAD_TOKENS, PACKED_HEAD_TOKENS + 7])
@torch.inference_mode()
def test_a_head_writes_every_logit(way: str, dtype: torch.dtype, vocab_size: int) -> None:
    weight = torch.randn(vocab_size, 48).to(dtype)
    head = build_head(way, weight)
    for rows in (1, 33):
        h = torch.randn(rows, 48).to(dtype)
        logits = torch.full((rows, vocab_size), torch.nan)
        head.write(h, out=logits)
        assert_near(logits, multiply(h, weight, None), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@torch.inference_mode()
def test_packed_weights_outlive_what_they_were_made_of(dtype: torch.dtype) -> None:
    weights = build_layer("llama", dtype)
    products = build_products("packed", weights)
    h = torch.randn(5, weights.qkv.shape[1]).to(dtype)
    before = products.qkv(h)
    weights.qkv.zero_()
    assert torch.equal(products.qkv(h), before)


def test_float16_is_not_packed() -> None:
    assert not can_pack(torch.zeros(8, 8, dtype=torch.float16))


@pytest.mark.parametrize(
    ("capability", "expected"), [("AVX512", True), ("AVX2", True), ("DEFAULT", False)]
)
def test_float32_is_packed_with_avx2_and_more(
    monkeypatch: pytest.MonkeyPatch, capability: str, expected: bool
) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert can_pack(torch.zeros(8, 8)) is expected
