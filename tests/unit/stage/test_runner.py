"""The layers, joined by a dense attention, against transformers' own modules."""

import pytest
import torch

from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig, InvariantBroken
from glinthawk.models.config import ModelConfig
from glinthawk.stage.device import ComputePolicy
from glinthawk.stage.runner import SegmentRunner
from unit.stage.factories import FLOAT32, build_reference, build_weights, dense_attention

FAMILIES = ("llama", "llama3", "linear", "biased", "mistral", "qwen2", "qwen3")
LENGTHS = (1, 30, 7, 120)
ALL = 3


def make_runner(
    family: str, first: int = 0, last: int = ALL, policy: ComputePolicy = FLOAT32
) -> SegmentRunner:
    model, config = build_reference(family)
    weights = build_weights(model, first, last)
    return SegmentRunner(config, weights, policy, num_positions=256)


def attend_packed(
    config: ModelConfig, layer: int, qkv: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    parts = []
    for rows in qkv.float().split(lengths):
        q, k, v = rows.split([config.query_size, config.kv_size, config.kv_size], dim=1)
        parts.append(dense_attention(config, q, k, v, config.windows[layer]))
    return torch.cat(parts).to(qkv.dtype)


def forward(
    runners: list[SegmentRunner], config: ModelConfig, tokens: list[torch.Tensor]
) -> torch.Tensor:
    """Return the logits of all rows of several sequences that go through the layers together."""
    lengths = tuple(len(sequence) for sequence in tokens)
    positions = torch.cat([torch.arange(length) for length in lengths])
    residual = runners[0].embed(torch.cat(tokens))
    for runner in runners:
        qkv = runner.before_attention(runner.first_layer, residual, positions)
        for layer in range(runner.first_layer, runner.last_layer - 1):
            output = attend_packed(config, layer, qkv, lengths)
            residual = runner.after_attention(layer, residual, output)
            qkv = runner.before_attention(layer + 1, residual, positions)
        layer = runner.last_layer - 1
        output = attend_packed(config, layer, qkv, lengths)
        residual = runner.after_attention(layer, residual, output)
    return runners[-1].logits(residual)


def make_tokens(config: ModelConfig) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(config.vocab_size, (n,), generator=generator) for n in LENGTHS]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_are_those_of_transformers(family: str) -> None:
    model, config = build_reference(family)
    tokens = make_tokens(config)
    expected = torch.cat([model(sequence[None]).logits[0] for sequence in tokens])
    stages = [make_runner(family, 0, 2), make_runner(family, 2, 3)]
    for runners in ([make_runner(family)], stages):
        logits = forward(runners, config, tokens)
        scale = expected.abs().max()
        assert scale > 1
        assert (logits - expected).abs().max() / scale < 1e-5


@torch.inference_mode()
def test_buffers_are_reused_by_smaller_and_larger_batches() -> None:
    runner = make_runner("qwen3")
    residual = runner.embed(torch.arange(40))
    positions = torch.arange(40)
    all_rows = runner.before_attention(0, residual.clone(), positions).clone()
    few = runner.before_attention(0, residual[:5].clone(), positions[:5])
    torch.testing.assert_close(few, all_rows[:5], rtol=1e-5, atol=1e-5)
    again = runner.before_attention(0, residual.clone(), positions)
    assert torch.equal(again, all_rows)


@pytest.mark.parametrize(
    ("dtype", "products", "tolerance"),
    [
        (DType.BFLOAT16, torch.bfloat16, 0.1),
        (DType.BFLOAT16, torch.float32, 0.1),
        (DType.FLOAT16, torch.float32, 0.01),
    ],
)
@torch.inference_mode()
def test_narrow_formats_keep_the_residual_in_float32_and_stay_close(
    dtype: DType, products: torch.dtype, tolerance: float
) -> None:
    model, config = build_reference("qwen2")
    narrow = ComputePolicy(torch.device("cpu"), dtype, products)
    model = model.to(narrow.activations).to(products)
    weights = build_weights(model, 0, ALL)
    runner = SegmentRunner(config, weights, narrow, num_positions=256)
    tokens = make_tokens(config)
    residual = runner.embed(torch.cat(tokens))
    positions = torch.cat([torch.arange(len(sequence)) for sequence in tokens])
    assert residual.dtype is torch.float32
    assert runner.before_attention(0, residual, positions).dtype is narrow.activations

    logits = forward([runner], config, tokens)
    reference = model.to(torch.float32)
    expected = torch.cat([reference(sequence[None]).logits[0] for sequence in tokens])
    assert logits.dtype is torch.float32
    assert (logits - expected).abs().mean() / expected.abs().mean() < tolerance


@torch.inference_mode()
def test_rows_that_were_returned_are_not_written_to_again() -> None:
    runner = make_runner("llama")
    residual = runner.embed(torch.arange(6))
    returned = runner.before_attention(0, residual, torch.arange(6))
    kept = returned.clone()
    runner.before_attention(0, runner.embed(torch.arange(6) + 7), torch.arange(6))
    assert torch.equal(returned, kept)


def test_what_a_stage_lacks_is_refused() -> None:
    runner = make_runner("llama", 1, 2)
    assert not runner.is_first
    assert not runner.is_last
    with pytest.raises(InvariantBroken, match="embedding"):
        runner.embed(torch.arange(2))
    with pytest.raises(InvariantBroken, match="output head"):
        runner.logits(torch.zeros(1, runner.hidden_size))
    with pytest.raises(InvariantBroken, match="holds layers 1 to 1"):
        runner.after_attention(2, torch.zeros(1, 48), torch.zeros(1, runner.output_width))


def test_weights_of_another_format_are_refused() -> None:
    model, config = build_reference("llama")
    policy = ComputePolicy(torch.device("cpu"), DType.BFLOAT16, torch.bfloat16)
    with pytest.raises(InvalidConfig, match=r"float32.*bfloat16"):
        SegmentRunner(config, build_weights(model, 0, ALL), policy, num_positions=8)
