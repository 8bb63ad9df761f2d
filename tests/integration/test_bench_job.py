"""A batch of any length takes as much of a gateway's memory as a short one."""

import json
from pathlib import Path
from typing import Any

import pytest

from factories_models import make_tiny_model
from glinthawk.bench.job import JobBenchSettings, run_job_bench
from glinthawk.bench.report import build_samples_table
from glinthawk.errors import InvalidConfig

LEAST_BYTES = 8 << 20
"""That an interpreter takes: less was not measured."""


def check(result: dict[str, Any], lines: tuple[int, ...]) -> None:
    missed = [goal for goal in result["goals"] if not goal["holds"]]
    assert not missed, json.dumps(result, indent=1)
    assert len(result["goals"]) == 4
    assert [sample["lines"] for sample in result["samples"]] == list(lines)
    for sample in result["samples"]:
        assert sample["answered"] >= result["settings"]["answered"]
        assert sample["gateway_peak"] >= sample["gateway_at_rest"] > LEAST_BYTES
        assert sample["validation_peak"] > LEAST_BYTES
    assert build_samples_table(result).row_count == len(lines)


@pytest.mark.parametrize(
    ("lines", "answered"),
    [
        ((2_000, 20_000), 50),
        pytest.param(
            *((10_000, 1_000_000), 2000),
            marks=[pytest.mark.acceptance, pytest.mark.timeout(3600)],
        ),
    ],
)
def test_peaks_do_not_grow_with_the_lines(
    tmp_path: Path, lines: tuple[int, ...], answered: int
) -> None:
    model = make_tiny_model("llama3", tmp_path / "llama3")
    settings = JobBenchSettings(lines=lines, answered=answered, model=str(model))
    check(json.loads(json.dumps(run_job_bench(settings))), lines)


@pytest.mark.parametrize(
    "changes",
    [
        {"lines": (10,)},
        {"lines": (20, 10)},
        {"lines": (10, 10)},
        {"answered": 0},
        {"answered": 11, "lines": (10, 20)},
        {"tokens": 0},
    ],
)
def test_sizes_that_measure_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(changes))):
        JobBenchSettings(**changes)
