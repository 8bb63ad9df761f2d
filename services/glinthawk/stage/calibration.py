"""Which format a CPU multiplies faster, measured on it.

Flags say what a CPU can do, not how fast: of those with bfloat16 instructions some multiply
bfloat16 many times faster than float32, and some slower (ADR 0015).
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from glinthawk.stage.buffers import Buffers
from glinthawk.stage.products import build_head
from glinthawk.stage.threads import call_apart

LEAST_GAIN = 1.25
"""float32 must be so many times faster: its weights take twice the memory, and twice as long to
read where rows are few. It is also more than the measurement errs."""

_ROWS, _HIDDEN, _OUT = 128, 1024, 4096
_ROUNDS = 5


def is_float32_faster(clock: Callable[[], float] = time.perf_counter) -> bool:
    """Tell whether this CPU multiplies float32 clearly faster than bfloat16, with torch's present
    number of threads and about as many rows as a lane has."""
    return call_apart(partial(_compare, clock)) >= LEAST_GAIN


@torch.inference_mode()
def _compare(clock: Callable[[], float]) -> float:
    """Return the seconds of a product in bfloat16 / those of the same one in float32."""
    buffers = Buffers(torch.device("cpu"))
    out = torch.empty(_ROWS, _OUT)
    dtypes = (torch.bfloat16, torch.float32)
    heads = [build_head(torch.ones(_OUT, _HIDDEN, dtype=dtype), buffers) for dtype in dtypes]
    inputs = [torch.ones(_ROWS, _HIDDEN, dtype=dtype) for dtype in dtypes]
    seconds: list[list[float]] = [[], []]
    for _ in range(_ROUNDS + 1):
        # In turn, so that both meet the same neighbours.
        for head, h, taken in zip(heads, inputs, seconds, strict=True):
            started = clock()
            head.write(h, out=out)
            taken.append(clock() - started)
    # The first round makes what later ones use.
    narrow, wide = (statistics.median(taken[1:]) for taken in seconds)
    return narrow / wide
