"""The drain benchmark over real processes, and drains that outlast a gateway."""

import json
from pathlib import Path
from typing import Any

import pytest

from factories_models import make_tiny_model
from glinthawk.bench.drain import (
    DrainBenchSettings,
    run_drain_bench,
)
from glinthawk.bench.fleet import GATEWAY, Fleet, FleetSettings, fleet_of, wait_until
from glinthawk.bench.report import build_samples_table
from glinthawk.errors import InvalidConfig

WAIT_S = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "llama3"))


def test_sequences_move_in_both_ways_and_the_document_tells_how(model: str) -> None:
    settings = DrainBenchSettings(
        sequences=3,
        contexts=(40,),
        tokens=900,
        runs=1,
        deadline_s=1.0,
        model=model,
        dtype="float32",
        kv_memory="8MiB",
    )
    result: dict[str, Any] = json.loads(json.dumps(run_drain_bench(settings)))
    copied, recomputed = result["samples"]
    assert [copied["way"], recomputed["way"]] == ["copy", "recompute"]
    assert recomputed["runs"][0]["recomputed_tokens"] >= 3 * 40
    assert recomputed["runs"][0]["moved_tokens"] == recomputed["bytes"] == 0
    run = copied["runs"][0]
    assert run["moved_tokens"] + run["recomputed_tokens"] >= 3 * 40
    names = [ratio["name"] for ratio in result["ratios"]]
    assert names == [goal["name"] for goal in result["goals"]]
    assert all("context 40" in name for name in names)
    assert all(ratio["value"] > 0 for ratio in result["ratios"])
    assert build_samples_table(result).row_count == 2


@pytest.mark.parametrize(
    "changes",
    [{"sequences": 0}, {"runs": 0}, {"contexts": ()}, {"contexts": (5, 0)}, {"tokens": 1}],
)
def test_sizes_that_measure_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(changes))):
        DrainBenchSettings(**changes)


def test_a_drain_outlasts_the_gateway_until_it_is_taken_back(model: str, tmp_path: Path) -> None:
    settings = FleetSettings(model, tmp_path, num_stages=1, num_workers=2, kv_memory="8MiB")
    with fleet_of(settings) as fleet:
        fleet.control.drain("worker-0", 3600.0)
        wait_for_states(fleet, {"worker-0": "drained", "worker-1": "active"})
        start_anew(fleet)
        wait_for_states(fleet, {"worker-0": "drained", "worker-1": "active"})
        fleet.control.cancel_drain("worker-0")
        wait_for_states(fleet, {"worker-0": "active", "worker-1": "active"})
        start_anew(fleet)
        wait_for_states(fleet, {"worker-0": "active", "worker-1": "active"})


def start_anew(fleet: Fleet) -> None:
    """Kill the gateway, and start the next one on its data and ports."""
    fleet.life(GATEWAY).kill()
    fleet.remove(GATEWAY)
    fleet.begin_gateway()
    wait_until(fleet.api.is_ready, "the next gateway is ready", WAIT_S)


def wait_for_states(fleet: Fleet, expected: dict[str, str]) -> None:
    def is_so() -> bool:
        workers = fleet.control.inspect()["workers"]
        return {worker["name"]: worker["state"] for worker in workers} == expected

    wait_until(is_so, f"workers are {expected}", WAIT_S)
