"""The real model: token for token transformers' greedy texts, and bfloat16 close to them."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from batch_runs import BatchRun, completion, run_batch
from fixtures_smollm2 import read_cases
from references import first_tie

CASES = read_cases()


def run_cases(tmp_path: Path, *options: str, **body: Any) -> BatchRun:
    lines = [
        completion(
            f"c{index}",
            case["prompt"],
            max_tokens=len(case["tokens"]),
            temperature=0,
            ignore_eos=True,
            **body,
        )
        for index, case in enumerate(CASES)
    ]
    return run_batch(tmp_path, lines, "--model", "smollm2-135m", *options)


@pytest.mark.parametrize(
    ("stages", "workers"),
    [
        (2, 2),
        pytest.param(1, 1, marks=pytest.mark.acceptance),
        pytest.param(3, 3, marks=pytest.mark.acceptance),
    ],
)
def test_greedy_texts_equal_transformers(stages: int, workers: int, tmp_path: Path) -> None:
    options = ("--stages", str(stages), "--attention-workers", str(workers))
    run = run_cases(tmp_path, "--dtype", "float32", *options, logprobs=20)
    assert run.exit_code == 0, run.stderr
    for index, case in enumerate(CASES):
        length = first_tie(case["gaps"])
        assert run.tokens(f"c{index}")[:length] == case["tokens"][:length], f"prompt {index}"
        logprobs = run.body(f"c{index}")["choices"][0]["logprobs"]
        for step, top in case["top"].items():
            place = int(step)
            if place >= length:
                break
            ours = logprobs["token_logprobs"][place]
            assert ours == pytest.approx(case["logprobs"][place], abs=5e-4)
            values = sorted(logprobs["top_logprobs"][place].values(), reverse=True)
            assert values == pytest.approx(sorted(top.values(), reverse=True), abs=5e-4)


def test_bfloat16_gives_the_references_tokens_the_same_mean_logprob(tmp_path: Path) -> None:
    lines = [
        completion(
            f"c{index}",
            case["prompt"] + case["tokens"],
            max_tokens=0,
            echo=True,
            logprobs=0,
        )
        for index, case in enumerate(CASES)
    ]
    run = run_batch(tmp_path, lines, "--model", "smollm2-135m", "--dtype", "bfloat16")
    assert run.exit_code == 0, run.stderr
    ours: list[float] = []
    for index, case in enumerate(CASES):
        values = run.body(f"c{index}")["choices"][0]["logprobs"]["token_logprobs"]
        ours += values[len(case["prompt"]) :]
    expected = fmean(value for case in CASES for value in case["logprobs"])
    assert fmean(ours) == pytest.approx(expected, abs=0.02)
