import json

import pytest

from factories_models import make_tiny_model
from glinthawk.bench.report import build_samples_table
from glinthawk.bench.serve import BATCH, BATCHES, STREAMS, ServeBenchSettings, run_serve_bench
from glinthawk.errors import InvalidConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model("smollm2", tmp_path_factory.mktemp("bench") / "model"))


def test_each_door_does_the_same_work_and_is_compared_with_the_command(model: str) -> None:
    settings = ServeBenchSettings(prompts=6, tokens=5, runs=1, dtype="float32", model=model)
    result = json.loads(json.dumps(run_serve_bench(settings)))
    assert [sample["door"] for sample in result["samples"]] == [BATCH, BATCHES, STREAMS]
    speeds = {sample["door"]: sample["tokens_per_second"] for sample in result["samples"]}
    for sample in result["samples"]:
        assert [run["num_generated_tokens"] for run in sample["runs"]] == [30]
        assert sample["tokens_per_second"] == pytest.approx(30 / sample["run_s"])
    assert {goal["name"]: goal["goal"] for goal in result["goals"]} == {
        "batches / batch": 0.9,
        "streams / batch": 0.9,
    }
    for ratio in result["ratios"]:
        door = ratio["name"].split(" / ")[0]
        assert ratio["value"] == pytest.approx(speeds[door] / speeds[BATCH])
    assert build_samples_table(result).row_count == 3


def test_no_work_is_refused(model: str) -> None:
    with pytest.raises(InvalidConfig, match="prompts is 0"):
        run_serve_bench(ServeBenchSettings(prompts=0, model=model))
