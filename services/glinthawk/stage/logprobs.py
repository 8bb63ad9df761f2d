"""Logprobs of the raw distribution: of the tokens that stand there, and of the best ones.

The rank of a token is the number of tokens whose logit is at least its own, as in vLLM.
"""

from collections.abc import Sequence

import torch

from glinthawk.core.step import TokenLogprobs


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Return the logprobs of `tokens` [n] under `logits` [n, vocabulary].

    num_top[i]: how many of row i's best tokens come along, best first (equals by id).
    """
    if not len(tokens):
        return []
    totals = logits.logsumexp(dim=1, keepdim=True)
    chosen = logits.gather(1, tokens[:, None])
    ranks = (logits >= chosen).sum(dim=1).tolist()
    values = (chosen - totals)[:, 0].tolist()
    tops = _best(logits, totals, num_top)
    return [
        TokenLogprobs(token=token, logprob=value, rank=rank, top=top)
        for token, value, rank, top in zip(tokens.tolist(), values, ranks, tops, strict=True)
    ]


@torch.inference_mode()
def prompt_logprobs(
    logits: torch.Tensor, targets: Sequence[int], num_top: int
) -> list[TokenLogprobs]:
    """Return the logprobs of `targets` [n], each under its row of `logits` [n, vocabulary]."""
    tokens = torch.tensor(list(targets), dtype=torch.int64, device=logits.device)
    return token_logprobs(logits, tokens, [num_top] * len(tokens))


def _best(
    logits: torch.Tensor, totals: torch.Tensor, num_top: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    width = min(max(num_top), logits.shape[1])
    if width == 0:
        return [()] * len(num_top)
    best = torch.topk(logits, width, dim=1)
    values = (best.values - totals).tolist()
    tokens = best.indices.tolist()
    return [
        tuple(sorted(zip(ids, row, strict=True), key=_best_first)[:count])
        for ids, row, count in zip(tokens, values, num_top, strict=True)
    ]


def _best_first(entry: tuple[int, float]) -> tuple[float, int]:
    token, logprob = entry
    return (-logprob, token)
