"""The same request gives the same tokens alone, in a crowd, on any topology, after set-backs."""

import random
from pathlib import Path
from typing import Any

import pytest

from batch_runs import BatchRun, completion, run_batch
from factories_models import make_tiny_model

NUM_REQUESTS = 40
COMMON = ("--dtype", "float32", "--max-sequence-length", "400", "--prefill-tokens", "150")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("qwen3", tmp_path_factory.mktemp("model") / "qwen3")


def make_requests() -> list[dict[str, Any]]:
    numbers = random.Random(7)
    settings: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 1.3, "top_p": 0.7},
        {"top_k": 5},
        {"min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 0.9, "repetition_penalty": 1.2, "seed": 99},
    ]
    return [
        completion(
            f"r{index}",
            [numbers.randrange(3, 300) for _ in range(numbers.choice([1, 5, 40, 200]))],
            max_tokens=30,
            ignore_eos=True,
            n=1 + index % 3,
            **settings[index % len(settings)],
        )
        for index in range(NUM_REQUESTS)
    ]


def all_tokens(run: BatchRun) -> dict[str, list[list[int]]]:
    assert run.exit_code == 0, run.stderr
    return {
        f"r{index}": [choice["token_ids"] for choice in run.body(f"r{index}")["choices"]]
        for index in range(NUM_REQUESTS)
        if f"r{index}" in run.answers
    }


@pytest.fixture(scope="module")
def crowd(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    folder = tmp_path_factory.mktemp("crowd")
    return all_tokens(run_batch(folder, make_requests(), "--model", str(model), *COMMON))


def assert_same(
    ours: dict[str, list[list[int]]], expected: dict[str, list[list[int]]], *, most: int
) -> None:
    """Fail if more than `most` choices differ: near ties of perturbed scores are rare."""
    different = [
        (name, choice)
        for name, choices in ours.items()
        for choice, tokens in enumerate(choices)
        if tokens != expected[name][choice]
    ]
    assert len(different) <= most, f"{different} differ"


@pytest.mark.parametrize(
    "options",
    [
        ("--stages", "2", "--attention-workers", "3"),
        ("--stages", "3", "--transport", "grpc", "--lanes", "5"),
        # Too little KV for all: sequences wait, or are set back and computed again.
        ("--kv-memory", "2MiB", "--prefill-tokens", "64"),
    ],
)
def test_topology_and_set_backs_do_not_change_tokens(
    model: Path, crowd: dict[str, list[list[int]]], options: tuple[str, ...], tmp_path: Path
) -> None:
    run = run_batch(tmp_path, make_requests(), "--model", str(model), *COMMON, *options)
    assert_same(all_tokens(run), crowd, most=1)


@pytest.mark.parametrize(
    "index", [11, *(pytest.param(index, marks=pytest.mark.acceptance) for index in (3, 28))]
)
def test_a_request_alone_gives_what_it_gave_in_the_crowd(
    model: Path, crowd: dict[str, list[list[int]]], tmp_path: Path, index: int
) -> None:
    run = run_batch(tmp_path, [make_requests()[index]], "--model", str(model), *COMMON)
    assert_same(all_tokens(run), crowd, most=0)


def test_choices_of_one_request_differ(crowd: dict[str, list[list[int]]]) -> None:
    for choices in crowd.values():
        assert len({tuple(tokens) for tokens in choices}) == len(choices)
