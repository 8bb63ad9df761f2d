"""Token for token what transformers says, for every family, on every topology."""

import random
from pathlib import Path

import pytest

from batch_runs import BatchRun, completion, run_batch
from factories_models import FAMILIES, make_tiny_model
from references import Reference, assert_same_tokens, greedy, load_reference_model

NUM_TOKENS = 24
TOPOLOGIES = [(stages, workers) for stages in (1, 2, 3) for workers in (1, 2, 3)]
OFTEN, SOMETIMES = (2, 3), (3, 2)
"""Each run of the tests has the first for every family, as it has one stage and one worker, and
the second for one; the rest is for the long tests."""

LENGTHS = (1, 2, 7, 31, 32, 33, 64, 100, 200, 333, 1000)


def make_prompts(vocabulary: int, *, seed: int) -> list[list[int]]:
    numbers = random.Random(seed)
    return [[numbers.randrange(3, vocabulary) for _ in range(length)] for length in LENGTHS]


Case = tuple[str, Path, list[list[int]], list[Reference]]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family: str = request.param
    path = make_tiny_model(family, tmp_path_factory.mktemp(family) / "model")
    model = load_reference_model(path)
    prompts = make_prompts(model.config.vocab_size, seed=len(family))
    return family, path, prompts, [greedy(model, prompt, NUM_TOKENS) for prompt in prompts]


def run(case: Case, folder: Path, *options: str, **body: object) -> BatchRun:
    """Have every prompt answered, and check that the tokens are those of transformers.

    200 tokens a step cut the longer prompts into chunks; the KV memory of the workers does not
    hold all sequences at once.
    """
    family, path, prompts, references = case
    lines = [
        completion(
            *(f"p{index}", prompt), max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, **body
        )
        for index, prompt in enumerate(prompts)
    ]
    done = run_batch(
        folder,
        lines,
        *("--model", str(path), "--dtype", "float32", "--kv-memory", "5MiB"),
        *("--prefill-tokens", "200", "--max-sequence-length", "1100"),
        *options,
    )
    assert done.exit_code == 0, done.stderr
    for index, reference in enumerate(references):
        assert_same_tokens(done.tokens(f"p{index}"), reference, f"{family}, prompt {index}")
    return done


def is_long(family: str, topology: tuple[int, int]) -> bool:
    return topology != OFTEN and (topology != SOMETIMES or family != FAMILIES[0])


@pytest.mark.parametrize(
    ("case", "stages", "workers"),
    [
        pytest.param(
            *(family, *topology),
            marks=[pytest.mark.acceptance] if is_long(family, topology) else [],
        )
        for family in FAMILIES
        for topology in TOPOLOGIES
    ],
    indirect=["case"],
)
def test_greedy_output_equals_transformers(
    case: Case, stages: int, workers: int, tmp_path: Path
) -> None:
    run(case, tmp_path, "--stages", str(stages), "--attention-workers", str(workers))


def test_logprobs_agree_over_the_top_20(case: Case, tmp_path: Path) -> None:
    """On one stage and one worker, so that this is also every family's test of these."""
    done = run(case, tmp_path, logprobs=20)
    for index, reference in enumerate(case[-1]):
        logprobs = done.body(f"p{index}")["choices"][0]["logprobs"]["token_logprobs"]
        tokens = done.tokens(f"p{index}")
        for step, (token, value) in enumerate(zip(tokens, logprobs, strict=True)):
            if token != reference.tokens[step]:
                break
            assert value == pytest.approx(reference.top[step][token], abs=5e-4)
