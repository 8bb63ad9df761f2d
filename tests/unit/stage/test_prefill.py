import pytest
import torch

from glinthawk.core.dtype import DType
from glinthawk.core.step import StepPlan
from glinthawk.errors import InvariantBroken
from glinthawk.models.config import ModelConfig, RopeConfig
from glinthawk.stage.device import ComputePolicy
from glinthawk.stage.prefill import PrefillAttention
from unit.stage.factories import FLOAT32, dense_attention, prefill_plan

WINDOWS = (None, 11, 300)
STARTS = [0, 0, 0, 40, 0, 3, 0, 0, 700, 0]
COUNTS = [5, 6, 300, 20, 1, 1, 40, 40, 600, 13]


def make_config(num_query_heads: int = 6, num_kv_heads: int = 2) -> ModelConfig:
    return ModelConfig(
        architecture="test",
        num_layers=len(WINDOWS),
        hidden_size=8,
        intermediate_size=8,
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=16,
        vocab_size=10,
        context_length=4096,
        norm_eps=1e-5,
        rope=RopeConfig(theta=1e4),
        windows=WINDOWS,
    )


def attend_densely(
    config: ModelConfig, layer: int, qkv: torch.Tensor, plan: StepPlan, earlier: torch.Tensor
) -> torch.Tensor:
    q, kv = qkv.float().split([config.query_size, 2 * config.kv_size], dim=1)
    counts, starts = plan.counts.tolist(), plan.starts.tolist()
    parts = []
    for queries, new, old in zip(
        q.split(counts), kv.split(counts), earlier.float().split(starts), strict=True
    ):
        k, v = torch.cat([old, new]).chunk(2, dim=1)
        parts.append(dense_attention(config, queries, k, v, config.windows[layer]))
    return torch.cat(parts)


def make_rows(
    config: ModelConfig, plan: StepPlan, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(plan.num_rows, config.qkv_size, generator=generator)
    earlier = torch.randn(int(plan.starts.sum()), 2 * config.kv_size, generator=generator)
    return qkv.to(dtype), earlier.to(dtype)


@pytest.mark.parametrize("layer", range(len(WINDOWS)))
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (8, 1)])
def test_packed_chunks_equal_dense_attention(layer: int, heads: tuple[int, int]) -> None:
    config = make_config(*heads)
    plan = prefill_plan(STARTS, COUNTS)
    qkv, earlier = make_rows(config, plan)
    output = PrefillAttention(config, FLOAT32).attend(layer, qkv, plan, earlier)
    expected = attend_densely(config, layer, qkv, plan, earlier)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_earlier_rows_may_come_as_bytes() -> None:
    config = make_config()
    plan = prefill_plan([3, 0], [4, 2])
    qkv, earlier = make_rows(config, plan)
    attention = PrefillAttention(config, FLOAT32)
    expected = attention.attend(0, qkv, plan, earlier)
    payload = earlier.numpy().tobytes()
    for view in (memoryview(payload), memoryview(bytearray(payload))):
        assert torch.equal(attention.attend(0, qkv, plan, view), expected)


def test_whole_prompts_need_no_earlier_rows() -> None:
    config = make_config()
    plan = prefill_plan([0, 0], [4, 2])
    qkv, earlier = make_rows(config, plan)
    attention = PrefillAttention(config, FLOAT32)
    expected = attend_densely(config, 0, qkv, plan, earlier)
    torch.testing.assert_close(attention.attend(0, qkv, plan), expected, rtol=1e-5, atol=1e-5)
    assert len(attention.attend(0, qkv[:0], prefill_plan([], []))) == 0


def test_a_chunked_prompt_has_the_outputs_of_the_whole_one() -> None:
    config = make_config()
    whole = prefill_plan([0], [90])
    qkv, _ = make_rows(config, whole)
    attention = PrefillAttention(config, FLOAT32)
    for layer in range(len(WINDOWS)):
        expected = attention.attend(layer, qkv, whole)
        parts = [
            attention.attend(
                layer,
                qkv[start : start + 30],
                prefill_plan([start], [30]),
                qkv[:start, config.query_size :].contiguous(),
            )
            for start in (0, 30, 60)
        ]
        torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-5, atol=1e-5)


def test_sums_are_float32_on_a_cpu_whatever_the_activations() -> None:
    config = make_config()
    plan = prefill_plan(STARTS, COUNTS)
    qkv, earlier = make_rows(config, plan, torch.bfloat16)
    policy = ComputePolicy(torch.device("cpu"), DType.BFLOAT16, torch.float32)
    output = PrefillAttention(config, policy).attend(0, qkv, plan, earlier)
    expected = attend_densely(config, 0, qkv, plan, earlier)
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=1 / 128, atol=1e-3)


def test_rows_that_are_not_the_plans_are_refused() -> None:
    config = make_config()
    plan = prefill_plan([3], [4])
    qkv, earlier = make_rows(config, plan)
    attention = PrefillAttention(config, FLOAT32)
    with pytest.raises(InvariantBroken, match="0 rows of earlier K and V came for 3"):
        attention.attend(0, qkv, plan)
    with pytest.raises(InvariantBroken, match="3 rows of qkv came for 4"):
        attention.attend(0, qkv[:3], plan, earlier)
