"""The choice by measurement, with a head whose speed the test knows."""

import time

import pytest
import torch

from glinthawk.stage import calibration
from glinthawk.stage.buffers import Buffers
from glinthawk.stage.products import Head


class SlowIn(Head):
    """A head that takes longer in one format."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def write(self, h: torch.Tensor, *, out: torch.Tensor) -> None:
        time.sleep(self._seconds)


@pytest.mark.parametrize(
    ("bfloat16_s", "float32_s", "expected"),
    [(0.02, 0.005, True), (0.005, 0.02, False), (0.01, 0.01, False)],
)
def test_float32_is_taken_only_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, bfloat16_s: float, float32_s: float, expected: bool
) -> None:
    seconds = {torch.bfloat16: bfloat16_s, torch.float32: float32_s}

    def build_head(weight: torch.Tensor, _: Buffers) -> Head:
        return SlowIn(seconds[weight.dtype])

    monkeypatch.setattr(calibration, "build_head", build_head)
    assert calibration.is_float32_faster() is expected


def test_real_products_give_a_ratio() -> None:

    assert 0.01 < calibration._compare() < 1000
