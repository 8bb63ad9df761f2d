"""What transformers says: greedy tokens with the gaps that the rule for near ties needs.

Float32 sums depend on the batch's shape, so two right computations may differ where the two
best scores lie closer together than `TIE`. Texts must be equal up to the first such token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

TIE = 2e-4


@dataclass(frozen=True)
class Reference:
    """Greedy continuation of one prompt.

    gaps: distance of the two best logits at each token. top: the 20 best logprobs at each
    token, by token id.
    """

    tokens: list[int]
    gaps: list[float]
    top: list[dict[int, float]]


def load_reference_model(path: Path) -> torch.nn.Module:
    """Return transformers' model in float32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompt: Sequence[int], num_tokens: int) -> Reference:
    """Return `num_tokens` greedy tokens after `prompt`, end tokens ignored."""
    tokens: list[int] = []
    gaps: list[float] = []
    top: list[dict[int, float]] = []
    for _ in range(num_tokens):
        # No cache of transformers' own: every token is computed from the whole sequence.
        inputs = torch.tensor([[*prompt, *tokens]])
        logits = model(inputs, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        best = torch.topk(logits, 2).values
        gaps.append(float(best[0] - best[1]))
        logprobs = torch.log_softmax(logits, dim=-1)
        values, ids = torch.topk(logprobs, min(20, len(logprobs)))
        top.append(dict(zip(ids.tolist(), values.tolist(), strict=True)))
        tokens.append(int(logits.argmax()))
    return Reference(tokens, gaps, top)


def first_tie(gaps: Sequence[float]) -> int:
    """Return how many tokens must be equal: those before the first near tie."""
    return next((index for index, gap in enumerate(gaps) if gap < TIE), len(gaps))


def assert_same_tokens(ours: Sequence[int], reference: Reference, what: str) -> None:
    """Fail unless our tokens are the reference's, up to its first near tie."""
    length = first_tie(reference.gaps)
    expected = reference.tokens[:length]
    assert list(ours[:length]) == expected, (
        f"{what}: tokens differ at {_first_difference(ours, expected)}, the first near tie of the "
        f"reference is at {length}"
    )


def _first_difference(ours: Sequence[int], expected: Sequence[int]) -> int:
    pairs = zip(ours, expected, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(ours))
