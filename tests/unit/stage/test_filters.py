import torch

from glinthawk.stage.filters import (
    Candidates,
    TokenCounts,
    apply_penalties,
    best_by_probability,
    best_k,
    keep_top_p,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def kept_tokens(candidates: Candidates, is_kept: torch.Tensor) -> list[set[int]]:
    return [
        set(tokens[kept].tolist()) for tokens, kept in zip(candidates.tokens, is_kept, strict=True)
    ]


LOGITS = torch.tensor([0.5, 0.2, 0.2, 0.06, 0.04]).log().expand(4, -1)


def test_rows_of_one_group_keep_filters_of_their_own() -> None:
    top_k = torch.tensor([1, 2, 4, 5])[:, None]
    min_p, top_p = column(0, 0, 0.2, 0), column(1, 1, 1, 0.75)
    candidates = best_k(LOGITS, column(1, 1, 1, 1), min_p, top_k)
    kept = kept_tokens(candidates, keep_top_p(candidates, top_p))
    # The two equals stand and fall together, at the border of top_k as of top_p.
    assert kept == [{0}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}]


def test_top_p_divides_what_min_p_left() -> None:
    min_p, top_p = column(0.0, 0.3, 0.11, 0.0), column(0.91, 0.6, 0.95, 0.45)
    for width in (None, 5, 100):
        candidates = best_by_probability(LOGITS, column(1, 1, 1, 1), min_p, top_p, width=width)
        kept = kept_tokens(candidates, keep_top_p(candidates, top_p))
        assert kept == [{0, 1, 2, 3}, {0, 1, 2}, {0, 1, 2, 3}, {0}]


def test_what_top_p_must_drop_is_left_out_before_the_sort() -> None:
    logits = torch.full((1, 10_000), -30.0)
    logits[0, :3] = 1.0
    candidates = best_by_probability(logits, column(1), column(0), column(0.99))
    assert candidates.tokens.shape == (1, 3)


def test_penalties_touch_only_the_pairs_named() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    counts = TokenCounts(
        rows=torch.tensor([0, 0, 1]),
        tokens=torch.tensor([0, 1, 2]),
        outputs=torch.tensor([0.0, 2.0, 1.0]),
        repetition=torch.tensor([2.0, 2.0, 1.0]),
        frequency=torch.tensor([0.5, 0.5, 0.0]),
        presence=torch.tensor([0.25, 0.25, -1.0]),
    )
    apply_penalties(logits, counts)
    assert logits.tolist() == [[1.0, -5.25, 1.0], [2.0, -2.0, 2.0]]
