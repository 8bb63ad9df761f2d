from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glinthawk.core.step import Fork, StepKind, StepPlan
from glinthawk.wire.composition import MAX_STEP_ROWS, decode_step, encode_step
from glinthawk.wire.frames import FrameError, FrameHeader, FrameKind
from unit.wire.factories import build_plan


def header_of(plan: StepPlan) -> FrameHeader:
    return FrameHeader(FrameKind.STEP, lane=plan.lane, step=plan.step, rows=plan.num_rows)


def encode(plan: StepPlan, *, full: bool = True) -> bytes:
    return encode_step(plan, include_tokens_and_registrations=full)


def assert_equal(left: StepPlan, right: StepPlan) -> None:
    for name in vars(left):
        first, second = getattr(left, name), getattr(right, name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype, name
            assert np.array_equal(first, second), name
        else:
            assert first == second, name


@pytest.mark.parametrize("kind", StepKind)
@pytest.mark.parametrize("seed", range(6))
def test_a_plan_comes_back_whole(kind: StepKind, seed: int) -> None:
    plan = build_plan(seed, kind=kind, n=seed * 3)
    data = encode(plan)
    decoded, size = decode_step(data, header_of(plan))
    assert size == len(data)
    assert_equal(decoded, plan)


def test_a_composition_for_a_worker_has_no_tokens_and_registrations() -> None:
    plan = build_plan(1)
    decoded, _ = decode_step(encode(plan, full=False), header_of(plan))
    assert_equal(decoded, replace(plan, tokens=np.zeros(0, np.uint32), registrations=()))


def test_activations_behind_a_composition_begin_aligned() -> None:
    plan = build_plan(2)
    activations = np.arange(plan.num_rows * 8, dtype=np.float32)
    buffer = np.zeros(len(encode(plan)) + activations.nbytes, np.uint8)
    buffer[:] = np.frombuffer(encode(plan) + activations.tobytes(), np.uint8)
    _, offset = decode_step(buffer.data, header_of(plan))
    assert offset % 64 == 0
    assert np.array_equal(buffer[offset:].view(np.float32), activations)


def test_a_plan_outlives_the_buffer_it_came_in() -> None:
    plan = build_plan(3)
    buffer = bytearray(encode(plan))
    decoded, _ = decode_step(buffer, header_of(plan))
    buffer[:] = bytes(len(buffer))
    assert_equal(decoded, plan)


def test_any_cut_is_refused() -> None:
    plan = build_plan(4)
    data = encode(plan)
    for size in range(len(data)):
        with pytest.raises(FrameError):
            decode_step(data[:size], header_of(plan))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.array([1, 2, 3, 4, 0], np.uint32)}, "0 rows"),
        ({"starts": np.full(5, 0xFFFFFFFF, np.uint32)}, "position"),
        ({"sequences": np.full(5, 3, np.uint64)}, "sequences of a step repeat"),
        ({"releases": (1, 1)}, "releases of a step repeat"),
        ({"forks": (Fork(1, 1, 4),)}, "from itself"),  # type: ignore[arg-type]
        ({"forks": (Fork(1, 2, 0),)}, "fork of 0"),  # type: ignore[arg-type]
        ({"kind": StepKind.RELEASE}, "release step"),
        ({"kind": StepKind.DECODE}, "decode step"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    plan = build_plan(5)
    counts = change.get("counts", plan.counts)
    tokens = np.zeros(int(counts.sum()), np.uint32)
    broken = replace(plan, **{"counts": counts, "tokens": tokens, **change})
    with pytest.raises(FrameError, match=message):
        decode_step(encode(broken), header_of(broken))


def test_rows_of_header_and_composition_must_agree() -> None:
    plan = build_plan(6)
    with pytest.raises(FrameError, match="rows"):
        decode_step(encode(plan), header_of(plan)._replace(rows=plan.num_rows + 1))


def test_a_step_above_the_row_limit_is_refused() -> None:
    plan = replace(build_plan(7, n=1), counts=np.array([MAX_STEP_ROWS + 1], np.uint32))
    with pytest.raises(FrameError, match="above the limit"):
        decode_step(encode(plan, full=False), header_of(plan))


def test_numbers_that_do_not_fit_are_refused_by_the_sender() -> None:
    with pytest.raises(FrameError):
        encode(replace(build_plan(8), releases=(1 << 64,)))  # type: ignore[arg-type]
    with pytest.raises(FrameError):
        encode(replace(build_plan(8), worker="x" * 70_000))
