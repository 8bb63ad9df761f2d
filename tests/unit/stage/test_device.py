from pathlib import Path

import pytest
import torch

from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig
from glinthawk.stage import device
from glinthawk.stage.device import choose_policy, has_native_bfloat16, set_threads


@pytest.mark.parametrize(
    ("has_bfloat16", "prefers_float32", "products"),
    [
        (True, False, torch.bfloat16),
        (True, True, torch.float32),
        (False, False, torch.float32),
    ],
)
def test_a_cpu_multiplies_bfloat16_where_it_has_it_and_is_not_slower_in_it(
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
    prefers_float32: bool,
    products: torch.dtype,
) -> None:
    monkeypatch.setattr(device, "has_native_bfloat16", lambda: has_bfloat16)
    rounded = None if products is torch.bfloat16 else torch.bfloat16
    policy = choose_policy("cpu", "bfloat16", prefers_float32=lambda: prefers_float32)
    assert (policy.wire, policy.products, policy.rounded_to) == (DType.BFLOAT16, products, rounded)
    assert policy.activations is torch.bfloat16


def test_other_formats_are_multiplied_in_float32_and_not_measured() -> None:
    def measure() -> bool:
        raise AssertionError("there is nothing to choose")

    for dtype, wire, rounded in (
        ("float32", DType.FLOAT32, None),
        ("float16", DType.FLOAT16, torch.float16),
    ):
        policy = choose_policy("cpu", dtype, prefers_float32=measure)
        assert (policy.wire, policy.products, policy.rounded_to) == (wire, torch.float32, rounded)


def test_auto_takes_bfloat16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, wire in ((True, DType.BFLOAT16), (False, DType.FLOAT32)):
        monkeypatch.setattr(device, "has_native_bfloat16", lambda n=native: n)
        policy = choose_policy("cpu", prefers_float32=lambda: False)
        assert policy.wire is wire
        assert policy.products is getattr(torch, wire.label)


def test_a_device_or_format_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(InvalidConfig, match="device 'tpu' is not one of auto, cpu, cuda"):
        choose_policy("tpu")
    with pytest.raises(InvalidConfig, match=r"'int8'.*or auto"):
        choose_policy("cpu", "int8")
    with pytest.raises(InvalidConfig, match="threads is 0"):
        set_threads(0)
    if not torch.cuda.is_available():
        assert choose_policy("auto", "float32").device.type == "cpu"
        with pytest.raises(InvalidConfig, match="use --device cpu"):
            choose_policy("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t: fpu avx2 f16c", False),
        ("flags\t: fpu avx512_bf16 avx512f", True),
        ("flags\t: amx_bf16", True),
        ("Features\t: asimd bf16", True),
        ("model name\t: avx512_bf16", False),
    ],
)
def test_bfloat16_products_are_read_off_the_cpus_flags(
    tmp_path: Path, flags: str, expected: bool
) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor\t: 0\n{flags}\n\n")
    assert has_native_bfloat16(cpu_info) is expected
    assert not has_native_bfloat16(tmp_path / "missing")
