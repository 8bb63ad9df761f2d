"""Choice of the backend: the compiled kernel where it is there, else the slow reference."""

from importlib.util import find_spec
from typing import Literal

import structlog

from glinthawk.attention.interface import AttentionBackend
from glinthawk.attention.reference import ReferenceBackend
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvalidConfig

Preference = Literal["auto", "kernel", "reference"]

_HOW_TO_GET_THE_KERNEL = (
    "install a C++17 compiler (g++ or clang++) and reinstall with "
    "'pip install --force-reinstall --no-cache-dir glinthawk'"
)


def select_backend(
    geometry: KVGeometry, num_pages: int, num_threads: int, prefer: Preference = "auto"
) -> AttentionBackend:
    """Return the kernel, or the reference where the kernel was not built or not wanted.

    Raises:
        InvalidConfig: the kernel is demanded and not built.
        ValueError: a dimension is outside what backends support.
    """
    if prefer != "reference" and is_kernel_built():
        from glinthawk.attention.kernel.backend import KernelBackend

        return KernelBackend(geometry, num_pages, num_threads)
    if prefer == "kernel":
        raise InvalidConfig(f"the attention kernel is not built; {_HOW_TO_GET_THE_KERNEL}")
    if prefer == "auto":
        structlog.get_logger(__name__).warning(
            "attention_reference_in_use",
            reason="the attention kernel is not built; this is the slow numpy reference",
            remedy=_HOW_TO_GET_THE_KERNEL,
        )
    return ReferenceBackend(geometry, num_pages, num_threads)


def is_kernel_built() -> bool:
    """Return whether the compiled extension lies beside this package."""
    return find_spec("glinthawk.attention.kernel._kernel") is not None
