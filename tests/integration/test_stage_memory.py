"""What a stage's products leave in memory, in the environment that the launcher gives it."""

import os
import subprocess
import sys

import pytest
import torch

from glinthawk.gateway.launcher import build_environment
from glinthawk.stage.products import can_pack

MOST_GROWTH_MIB = 100
"""With caches as large as they are by default it is more than 400."""

PROGRAM = """
import re
import torch
from glinthawk.stage.products import PackedProducts
from glinthawk.models.weights import LayerWeights

def resident_mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def matrix(*shape):
    return torch.ones(shape, dtype=torch.DTYPE)

torch.set_num_threads(1)
weights = LayerWeights(
    input_norm=torch.ones(576), post_norm=torch.ones(576), q_norm=None, k_norm=None,
    qkv=matrix(960, 576), output=matrix(576, 576), gate_up=matrix(3072, 576),
    down=matrix(576, 1536), qkv_bias=None, output_bias=None, gate_up_bias=None, down_bias=None,
)
with torch.inference_mode():
    products = PackedProducts(weights)
    for rows in range(1, 301):
        h, x = matrix(rows, 576), torch.ones(rows, 576)
        products.qkv(h), products.add_feed_forward(products.add_output(x, h), h)
        if rows == 20:
            before = resident_mib()
print(resident_mib() - before)
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_many_numbers_of_rows_leave_little_behind(dtype: str) -> None:
    if not can_pack(torch.zeros(8, 8, dtype=getattr(torch, dtype))):
        pytest.skip("this CPU has no products in this format, or torch no oneDNN")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("DTYPE", dtype)],
        env=build_environment(os.environ, threads=1),
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < MOST_GROWTH_MIB
