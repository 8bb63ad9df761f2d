"""What stands between raw logits and a choice: penalties, min_p, top_k, top_p.

Pure functions of tensors, one row per sampled token. The order and the meaning are vLLM's (its
v1 sampler): stop tokens masked, penalties, temperature, min_p, top_k, top_p.

The filters return candidates, a few columns instead of the whole vocabulary. Tokens whose logits
are equal are kept or dropped together, so nothing depends on how a sort orders them.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenCounts:
    """Tokens that penalties apply to, flat: row, token id, and the penalties of its row.

    rows, tokens: int64 [m], no pair twice. outputs: float32 [m], how often the token was
    generated; 0 for tokens of the prompt only. repetition, frequency, presence: float32 [m].
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    outputs: torch.Tensor
    repetition: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor


@dataclass(frozen=True)
class Candidates:
    """The tokens that may be chosen, best first.

    scores: float64 [n, k], logits / temperature. tokens: int64 [n, k]. is_kept: bool [n, k].
    log_total: float64 [n, 1], log of the sum of exp(scores) that top_p's probabilities refer to.
    """

    scores: torch.Tensor
    tokens: torch.Tensor
    is_kept: torch.Tensor
    log_total: torch.Tensor


def apply_penalties(logits: torch.Tensor, counts: TokenCounts) -> None:
    """Apply repetition (prompt and output), frequency and presence (output) in place."""
    values = logits[counts.rows, counts.tokens]
    values = torch.where(values > 0, values / counts.repetition, values * counts.repetition)
    values -= counts.frequency * counts.outputs
    values -= counts.presence * (counts.outputs > 0)
    logits[counts.rows, counts.tokens] = values


def best_k(
    logits: torch.Tensor, temperature: torch.Tensor, min_p: torch.Tensor, top_k: torch.Tensor
) -> Candidates:
    """Keep each row's `top_k` best tokens (and their equals), less what min_p drops.

    logits: float32 [n, vocabulary]. temperature, min_p: float64 [n, 1]. top_k: int64 [n, 1],
    1 to the vocabulary's size.
    """
    width = int(top_k.max())
    best = torch.topk(logits, width, dim=1)
    kth = best.values.gather(1, top_k - 1)
    num_equal = int((logits >= kth).sum(dim=1).max())
    if num_equal > width:
        best = torch.topk(logits, num_equal, dim=1)
    scores = best.values.double() / temperature
    is_kept = (best.values >= kth) & (scores >= scores[:, :1] + min_p.log())
    return Candidates(scores, best.indices, is_kept, _log_sum(scores, is_kept))


def best_by_probability(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    min_p: torch.Tensor,
    top_p: torch.Tensor,
    *,
    width: int | None = None,
) -> Candidates:
    """Keep what min_p keeps, of the `width` best tokens or of all that can matter.

    The tokens of probability up to (1 - top_p) / vocabulary have together at most 1 - top_p, so
    top_p drops them all: the rest is a few thousand, where a sort would take the vocabulary.
    logits: float32 [n, vocabulary]; temperature, min_p, top_p: float64 [n, 1].
    """
    has_min_p = min_p > 0
    log_total = (logits / temperature.float()).logsumexp(dim=1, keepdim=True).double()
    if width is None:
        best_score = logits.amax(dim=1, keepdim=True).double() / temperature
        # Both a little low, for the rounding of the sum and of the logits.
        bound = log_total + ((1.0 - top_p) / logits.shape[1]).log()
        lowest = torch.where(has_min_p, best_score + min_p.log(), bound) - 1e-3
        width = int((logits >= (lowest * temperature).float()).sum(dim=1).max())
    best = torch.topk(logits, min(width, logits.shape[1]), dim=1)
    scores = best.values.double() / temperature
    is_kept = ~has_min_p | (scores >= scores[:, :1] + min_p.log())
    kept_total = torch.where(has_min_p, _log_sum(scores, is_kept), log_total)
    return Candidates(scores, best.indices, is_kept, kept_total)


def keep_top_p(candidates: Candidates, top_p: torch.Tensor) -> torch.Tensor:
    """Return which candidates are left when each row keeps the fewest best tokens whose
    probabilities reach `top_p` (float64 [n, 1]), and their equals: bool [n, k]."""
    scores, is_kept = candidates.scores, candidates.is_kept
    probabilities = torch.where(is_kept, (scores - candidates.log_total).exp(), 0.0)
    before = probabilities.cumsum(dim=1) - probabilities
    # The best token has nothing before it; where top_p is 1 no rounding may drop the last ones.
    is_within = is_kept & ((before < top_p) | (top_p >= 1.0))
    lowest = torch.where(is_within, scores, torch.inf).amin(dim=1, keepdim=True)
    return is_kept & (scores >= lowest)


def _log_sum(scores: torch.Tensor, is_kept: torch.Tensor) -> torch.Tensor:
    return torch.where(is_kept, scores, -torch.inf).logsumexp(dim=1, keepdim=True)
