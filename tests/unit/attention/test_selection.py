import pytest
import structlog

from glinthawk.attention import selection
from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvalidConfig

GEOMETRY = KVGeometry(1, 2, 1, 32, DType.FLOAT16, (None,))


def test_the_kernel_is_chosen_where_it_is_built() -> None:
    if not selection.is_kernel_built():
        pytest.skip("the kernel is not built")
    assert selection.select_backend(GEOMETRY, 2, 1).name.startswith("kernel-")


def test_without_the_kernel_the_reference_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "is_kernel_built", lambda: False)
    with structlog.testing.capture_logs() as logs:
        backend = selection.select_backend(GEOMETRY, 2, 1)
    assert backend.name == "reference"
    assert logs[0]["event"] == "attention_reference_in_use"
    assert "compiler" in logs[0]["remedy"]


def test_a_demanded_kernel_that_is_not_built_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "is_kernel_built", lambda: False)
    with pytest.raises(InvalidConfig, match="not built"):
        selection.select_backend(GEOMETRY, 2, 1, prefer="kernel")


def test_the_reference_can_be_asked_for_quietly() -> None:
    with structlog.testing.capture_logs() as logs:
        backend = selection.select_backend(GEOMETRY, 2, 1, prefer="reference")
    assert backend.name == "reference"
    assert logs == []
