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
    return torch.ones(shape, dtype=torch.bfloat16)

torch.set_num_threads(1)
weights = LayerWeights(
    input_norm=torch.ones(576), post_norm=torch.ones(576), q_norm=None, k_norm=None,
    qkv=matrix(960, 576), output=matrix(576, 576), gate_up=matrix(3072, 576),
    down=matrix(576, 1536), qkv_bias=None, output_bias=None, gate_up_bias=None, down_bias=None,
)
with torch.inference_mode():
    products = PackedProducts(weights)
    for rows in range(1, 301):
        h = matrix(rows, 576)
        products.qkv(h), products.output(h), products.feed_forward(h)
        if rows == 20:
            before = resident_mib()
print(resident_mib() - before)
"""


@pytest.mark.skipif(
    not can_pack(torch.zeros(8, 8, dtype=torch.bfloat16)),
    reason="this CPU has no bfloat16 products, or torch no oneDNN",
)
def test_many_numbers_of_rows_leave_little_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=build_environment(os.environ, threads=1),
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < MOST_GROWTH_MIB
