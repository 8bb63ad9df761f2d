"""Token for token what transformers says, for every family, on every topology."""

import random
from pathlib import Path

import pytest

from batch_runs import completion, run_batch
from factories_models import FAMILIES, make_tiny_model
from references import Reference, assert_same_tokens, greedy, load_reference_model

NUM_TOKENS = 24
IN_CI = ((1, 1), (2, 3), (3, 2))
TOPOLOGIES = [
    pytest.param(
        *(stages, workers),
        marks=[] if (stages, workers) in IN_CI else [pytest.mark.acceptance],
    )
    for stages in (1, 2, 3)
    for workers in (1, 2, 3)
]
LENGTHS = (1, 2, 7, 31, 32, 33, 64, 100, 200, 333, 1000)


def make_prompts(vocabulary: int, *, seed: int) -> list[list[int]]:
    numbers = random.Random(seed)
    return [[numbers.randrange(3, vocabulary) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module", params=FAMILIES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[list[int]], list[Reference]]:
    family: str = request.param
    path = make_tiny_model(family, tmp_path_factory.mktemp(family) / "model")
    model = load_reference_model(path)
    prompts = make_prompts(model.config.vocab_size, seed=len(family))
    return family, path, prompts, [greedy(model, prompt, NUM_TOKENS) for prompt in prompts]


@pytest.mark.parametrize(("stages", "workers"), TOPOLOGIES)
def test_greedy_output_equals_transformers(
    case: tuple[str, Path, list[list[int]], list[Reference]],
    stages: int,
    workers: int,
    tmp_path: Path,
) -> None:
    family, path, prompts, references = case
    lines = [
        completion(f"p{index}", prompt, max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
        for index, prompt in enumerate(prompts)
    ]
    # 200 tokens a step cut the longer prompts into chunks; the KV memory of the workers does
    # not hold all sequences at once.
    run = run_batch(
        tmp_path,
        lines,
        *("--model", str(path), "--dtype", "float32", "--kv-memory", "5MiB"),
        *("--stages", str(stages), "--attention-workers", str(workers)),
        *("--prefill-tokens", "200", "--max-sequence-length", "1100"),
    )
    assert run.exit_code == 0, run.stderr
    for index, reference in enumerate(references):
        assert_same_tokens(run.tokens(f"p{index}"), reference, f"{family}, prompt {index}")


def test_logprobs_agree_over_the_top_20(
    case: tuple[str, Path, list[list[int]], list[Reference]], tmp_path: Path
) -> None:
    _, path, prompts, references = case
    lines = [
        completion(
            *(f"p{index}", prompt), max_tokens=8, temperature=0, ignore_eos=True, logprobs=20
        )
        for index, prompt in enumerate(prompts)
    ]
    run = run_batch(tmp_path, lines, "--model", str(path), "--dtype", "float32")
    assert run.exit_code == 0, run.stderr
    for index, reference in enumerate(references):
        logprobs = run.body(f"p{index}")["choices"][0]["logprobs"]["token_logprobs"]
        tokens = run.tokens(f"p{index}")
        for step, (token, value) in enumerate(zip(tokens, logprobs, strict=True)):
            if token != reference.tokens[step]:
                break
            assert value == pytest.approx(reference.top[step][token], abs=5e-4)
