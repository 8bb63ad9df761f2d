"""Draws tokens from logits that are final but for temperature and filters.

Gumbel-max: the token with the best logit / temperature + noise is a draw from the softmax. In
float64, so that no two scores are equal by rounding.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glinthawk.stage.filters import Candidates, best_by_probability, best_k, keep_top_p
from glinthawk.stage.noise import gumbel, noise_keys, token_counters
from glinthawk.stage.parameters import Method

_CHUNK_ELEMENTS = 1 << 17
"""Scores of a whole vocabulary that a CPU works on at once: what its caches hold."""

_BLOCK = 256
"""Tokens among which a CPU looks for the place of the highest logit."""

_NARROW = 128
"""Best tokens that mostly hold all that top_p and min_p keep."""


def draw_tokens(
    logits: torch.Tensor,
    method: Method,
    parameters: npt.NDArray[Any],
    positions: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the chosen token of each row of float32 `logits` [n, vocabulary].

    parameters: rows of a `ParameterTable`, all of `method`. positions: [n], where the tokens
    will stand.
    """
    if method is Method.GREEDY:
        tokens = best_tokens(logits)
    else:
        keys = noise_keys(parameters["seed"], parameters["choice"], positions.astype(np.uint64))
        keys_there = torch.from_numpy(keys).to(logits.device)
        if method is Method.PLAIN:
            tokens = _draw_plain(logits, _column(parameters, "temperature", logits), keys_there)
        elif method is Method.TOP_K:
            tokens = _draw_top_k(logits, parameters, keys_there)
        else:
            tokens = _draw_by_probability(logits, parameters, keys_there)
    return np.asarray(tokens.cpu().numpy(), dtype=np.int64)


def best_tokens(logits: torch.Tensor) -> torch.Tensor:
    """Return the token with the highest logit of each row, the lowest of equal ones: int64 [n].

    The highest of each block first, which a CPU finds many times faster than their places.
    """
    rows, vocab_size = logits.shape
    if logits.is_cuda or vocab_size <= _BLOCK:
        return logits.argmax(dim=1)
    whole = vocab_size // _BLOCK * _BLOCK
    highest = logits[:, :whole].view(rows, whole // _BLOCK, _BLOCK).amax(dim=2)
    if whole < vocab_size:
        rest = logits[:, whole:].amax(dim=1, keepdim=True)
        highest = torch.cat((highest, rest), dim=1)
    first = highest.argmax(dim=1, keepdim=True) * _BLOCK
    places = (first + torch.arange(_BLOCK)).clamp_(max=vocab_size - 1)
    return logits.gather(1, places).argmax(dim=1) + first[:, 0]


def _draw_plain(
    logits: torch.Tensor, temperature: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    rows, vocab_size = logits.shape
    counters = token_counters(torch.arange(vocab_size, device=logits.device))
    chunk = rows if logits.is_cuda else max(1, _CHUNK_ELEMENTS // vocab_size)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    for first in range(0, rows, chunk):
        part = slice(first, first + chunk)
        scores = gumbel(keys[part], counters).add_(logits[part] / temperature[part])
        torch.argmax(scores, dim=1, out=tokens[part])
    return tokens


def _draw_top_k(
    logits: torch.Tensor, parameters: npt.NDArray[Any], keys: torch.Tensor
) -> torch.Tensor:
    temperature, min_p, top_p = _filters(parameters, logits)
    candidates = best_k(logits, temperature, min_p, _column(parameters, "top_k", logits))
    return _draw_candidates(candidates, keep_top_p(candidates, top_p), keys)


def _draw_by_probability(
    logits: torch.Tensor, parameters: npt.NDArray[Any], keys: torch.Tensor
) -> torch.Tensor:
    """Draw from the `_NARROW` best tokens; where those were not enough, from all that matter.

    They are enough if the last of them is dropped; for min_p, whose rest top_p then divides, if
    min_p drops it. What is kept is the same either way.
    """
    temperature, min_p, top_p = _filters(parameters, logits)
    narrow = best_by_probability(logits, temperature, min_p, top_p, width=_NARROW)
    is_kept = keep_top_p(narrow, top_p)
    tokens = _draw_candidates(narrow, is_kept, keys)
    last_is_kept = torch.where(min_p[:, 0] > 0, narrow.is_kept[:, -1], is_kept[:, -1])
    rest = torch.nonzero(last_is_kept)[:, 0]
    if len(rest) and logits.shape[1] > _NARROW:
        top_p = top_p[rest]
        wide = best_by_probability(logits[rest], temperature[rest], min_p[rest], top_p)
        tokens[rest] = _draw_candidates(wide, keep_top_p(wide, top_p), keys[rest])
    return tokens


def _draw_candidates(
    candidates: Candidates, is_kept: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    scores = gumbel(keys, token_counters(candidates.tokens)).add_(candidates.scores)
    best = scores.masked_fill_(~is_kept, -torch.inf).argmax(dim=1, keepdim=True)
    return candidates.tokens.gather(1, best)[:, 0]


def _filters(
    parameters: npt.NDArray[Any], logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return temperature, min_p and top_p."""
    return (
        _column(parameters, "temperature", logits),
        _column(parameters, "min_p", logits),
        _column(parameters, "top_p", logits),
    )


def _column(parameters: npt.NDArray[Any], name: str, logits: torch.Tensor) -> torch.Tensor:
    """Return a column of the parameters as [n, 1] on the logits' device."""
    column = parameters[name].copy()
    return torch.from_numpy(column).to(logits.device)[:, None]
