"""A small storm over real processes: nothing is lost, doubled or changed, and nothing hangs."""

import json
from typing import Any

import pytest

from factories_models import make_tiny_model
from glinthawk.bench.chaos import ChaosBenchSettings, run_chaos_bench
from glinthawk.bench.report import build_samples_table

SEED = 74
"""Its first eight events strike the gateway, a stage and workers."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "llama3"))


def run(model: str, **changes: Any) -> dict[str, Any]:
    small = {"events": 8, "requests": 40, "tokens": 64, "attention_workers": 3, "seed": SEED}
    settings = ChaosBenchSettings(model=model, kv_memory="2MiB", **{**small, **changes})
    result: dict[str, Any] = json.loads(json.dumps(run_chaos_bench(settings)))
    return result


def check(result: dict[str, Any], num_events: int) -> None:
    missed = [goal for goal in result["goals"] if not goal["holds"]]
    assert not missed, json.dumps(result, indent=1)
    assert len(result["events"]) == num_events
    strikes = [event for event in result["events"] if event["recovery_s"] is not None]
    assert {event["part"] for event in strikes} == {"gateway", "stage", "worker"}
    assert build_samples_table(result).row_count == len(result["samples"])


def test_a_batch_outlives_a_small_storm(model: str) -> None:
    check(run(model), 8)


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_a_batch_outlives_sixty_events_over_ten_processes(model: str) -> None:
    sizes = {"events": 60, "requests": 200, "attention_workers": 7, "seed": 10}
    check(run(model, **sizes), 60)
