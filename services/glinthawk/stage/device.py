"""Where a stage computes and in which number formats.

Three formats, because they serve three ends:

    residual, norms, RoPE, softmax   always float32
    activations                      what crosses the wire (q, k, v, o) and lies in the KV cache
    products                         what matrix products run in, and so what weights are held in

A CPU without bfloat16 instructions multiplies bfloat16 ten times slower than float32, some with
them are slower too (`calibration`), and no CPU multiplies float16 well. There the activations keep
the format that was asked for, the weights are rounded to it, and both are held and multiplied as
float32.

OpenMP threads of torch spin while they wait. Where several processes share a machine, set
`GOMP_SPINCOUNT=0` in the environment before torch is imported: afterwards it has no effect.
ADR 0014 says what that costs and what it saves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from glinthawk.core.dtype import DType
from glinthawk.errors import InvalidConfig
from glinthawk.stage.calibration import is_float32_faster

_TORCH = {
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
}

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class ComputePolicy:
    """The device and the number formats of a stage.

    wire: format of q, k, v and o on the wire. products: torch dtype of weights and matrix
    products.
    """

    device: torch.device
    wire: DType
    products: torch.dtype

    @property
    def activations(self) -> torch.dtype:
        """The wire's format as torch names it."""
        return _TORCH[self.wire]

    @property
    def rounded_to(self) -> torch.dtype | None:
        """What weights are rounded to before they are held for products; None is not at all."""
        return None if self.activations is self.products else self.activations


def choose_policy(
    device: str = "auto",
    dtype: str = "auto",
    *,
    prefers_float32: Callable[[], bool] = is_float32_faster,
) -> ComputePolicy:
    """Choose device (`auto`, `cpu`, `cuda`) and formats (`auto` or a `DType` label).

    prefers_float32: asked for bfloat16 on a CPU that has its instructions. By default it is
    measured: call `set_threads` before.

    Raises:
        InvalidConfig: there is no such device or format here, or the device lacks the format.
    """
    chosen = _choose_device(device)
    wire = _choose_wire(chosen, dtype)
    if chosen.type == "cuda":
        if wire is DType.BFLOAT16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(chosen)
            raise InvalidConfig(
                f"dtype bfloat16 is not computed by {name}; use --dtype float16 or float32"
            )
        return ComputePolicy(chosen, wire, _TORCH[wire])
    if wire is DType.BFLOAT16 and has_native_bfloat16() and not prefers_float32():
        return ComputePolicy(chosen, wire, torch.bfloat16)
    return ComputePolicy(chosen, wire, torch.float32)


def has_native_bfloat16(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this CPU has bfloat16 products (AVX512_BF16, AMX, or Arm's BF16).

    Where there is no such file the answer is no.
    """
    try:
        text = cpu_info.read_text()
    except FileNotFoundError:
        return False
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return any(not _BFLOAT16_FLAGS.isdisjoint(line.split()) for line in lines[:1])


def set_threads(num_threads: int) -> None:
    """Give torch's products `num_threads` threads; call it before the first product.

    Raises:
        InvalidConfig: `num_threads` is below 1.
    """
    if num_threads < 1:
        raise InvalidConfig(f"threads is {num_threads}; a stage needs at least 1")
    torch.set_num_threads(num_threads)


def _choose_device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidConfig(f"device {device!r} is not one of auto, cpu, cuda")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidConfig("device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _choose_wire(device: torch.device, dtype: str) -> DType:
    if dtype == "auto":
        if device.type == "cuda":
            return DType.FLOAT16
        return DType.BFLOAT16 if has_native_bfloat16() else DType.FLOAT32
    try:
        return DType.parse(dtype)
    except ValueError as error:
        raise InvalidConfig(f"{error}; or auto") from error
