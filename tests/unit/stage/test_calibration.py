"""The choice by measurement: real products, and a clock that the test moves."""

import itertools

import pytest
import torch

from glinthawk.stage import calibration
from glinthawk.stage.buffers import Buffers
from glinthawk.stage.calibration import LEAST_GAIN, is_float32_faster
from glinthawk.stage.products import Head


class Clocked(Head):
    """A head that does nothing but let a clock go on."""

    def __init__(self, now: list[float], seconds: "itertools.cycle[float]") -> None:
        self._now = now
        self._seconds = seconds

    def write(self, h: torch.Tensor, *, out: torch.Tensor) -> None:
        self._now[0] += next(self._seconds)


@pytest.mark.parametrize(
    ("bfloat16_s", "float32_s", "expected"),
    [
        ((4.0,), (1.0,), True),
        ((1.0,), (4.0,), False),
        ((LEAST_GAIN + 0.01,), (1.0,), True),
        ((LEAST_GAIN - 0.01,), (1.0,), False),
        # One round of several that was disturbed counts for nothing.
        ((1.0, 1.0, 90.0, 1.0, 1.0, 1.0), (1.0,), False),
    ],
)
def test_float32_is_taken_only_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch,
    bfloat16_s: tuple[float, ...],
    float32_s: tuple[float, ...],
    expected: bool,
) -> None:
    now = [0.0]
    seconds = {torch.bfloat16: bfloat16_s, torch.float32: float32_s}

    def build_head(weight: torch.Tensor, _: Buffers) -> Head:
        return Clocked(now, itertools.cycle(seconds[weight.dtype]))

    monkeypatch.setattr(calibration, "build_head", build_head)
    assert is_float32_faster(lambda: now[0]) is expected


def test_real_products_run_in_both_formats() -> None:
    readings = itertools.count()
    # A clock that counts its readings finds both alike: float32 is not clearly faster.
    assert not is_float32_faster(lambda: float(next(readings)))
    assert next(readings) == 4 * (calibration._ROUNDS + 1)
