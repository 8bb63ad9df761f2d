"""Values that travel, made from a seed; used by the tests of the wire."""

import numpy as np

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import (
    Fork,
    SampledToken,
    SequenceStart,
    StepKind,
    StepPlan,
    StepResult,
    TokenLogprobs,
)


def build_plan(seed: int, *, kind: StepKind = StepKind.PREFILL, n: int = 5) -> StepPlan:
    rng = np.random.default_rng(seed)
    n = 0 if kind is StepKind.RELEASE else n
    counts = np.ones(n, np.uint32)
    if kind is StepKind.PREFILL:
        counts = rng.integers(1, 9, n).astype(np.uint32)
    ids = [SequenceId(int(item)) for item in rng.choice(1 << 40, n + 8, replace=False)]
    forks = tuple(Fork(ids[n + 3], ids[n + 4 + i], 1 + i) for i in range(3))
    return StepPlan(
        kind=kind,
        lane=LaneId(int(rng.integers(1 << 32))),
        step=int(rng.integers(1 << 32)),
        worker="worker-ä",
        sequences=np.array(ids[:n], np.uint64),
        starts=rng.integers(0, 1000, n).astype(np.uint32),
        counts=counts,
        samples=rng.integers(0, 2, n).astype(np.bool_),
        tokens=rng.integers(0, 1 << 17, int(counts.sum())).astype(np.uint32),
        releases=tuple(ids[n : n + 3]),
        forks=forks,
        registrations=tuple(build_start(seed + i, item) for i, item in enumerate(ids[:n])),
    )


def build_start(seed: int, sequence: SequenceId) -> SequenceStart:
    rng = np.random.default_rng(seed)
    tokens = tuple(rng.integers(0, 1 << 17, int(rng.integers(1, 30))).tolist())
    sampling = SamplingParams(
        temperature=float(rng.random()),
        top_p=float(rng.random()),
        top_k=None if seed % 2 else 40,
        min_p=0.05,
        presence_penalty=-1.5,
        frequency_penalty=0.25,
        repetition_penalty=1.1,
        min_tokens=seed % 5,
        stop_token_ids=frozenset(rng.choice(1000, seed % 4, replace=False).tolist()),
        seed=int(rng.integers(-(1 << 62), 1 << 62)) if seed % 3 else (1 << 64) - 1,
        choice=seed % 7,
        num_logprobs=None if seed % 2 else 0,
        num_prompt_logprobs=5 if seed % 2 else None,
    )
    return SequenceStart(sequence, tokens, len(tokens) // 2, sampling)


def build_result(seed: int, n: int = 6) -> StepResult:
    rng = np.random.default_rng(seed)

    def build_logprobs(num_top: int) -> TokenLogprobs:
        top = tuple((int(rng.integers(1 << 17)), -float(rng.random())) for _ in range(num_top))
        return TokenLogprobs(int(rng.integers(1 << 17)), -float(rng.random()), 3, top)

    sampled = tuple(
        SampledToken(
            SequenceId(int(rng.integers(1 << 62))),
            int(rng.integers(1 << 17)),
            build_logprobs(i) if i % 2 else None,
            ("not finite: ∞" if i % 4 else "") if i % 3 == 0 else None,
        )
        for i in range(n)
    )
    prompt = tuple((SequenceId(9), i, build_logprobs(i)) for i in range(n // 2))
    return StepResult(LaneId(3), 77, sampled, prompt)
