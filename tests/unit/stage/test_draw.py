"""The best token of a row, which a CPU looks for block by block."""

import pytest
import torch

from glinthawk.stage.draw import best_tokens


@pytest.mark.parametrize("vocab_size", [1, 255, 256, 257, 512, 1000, 49152, 50257])
def test_the_best_token_is_that_of_a_search_over_all(vocab_size: int) -> None:
    logits = torch.randn(33, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    logits[0] = -5.0
    logits[1, -1] = 100.0
    logits[2, 0] = 100.0
    logits[3] = -torch.inf
    logits[3, vocab_size // 2] = -1e30
    assert best_tokens(logits).tolist() == logits.argmax(dim=1).tolist()


def test_of_equal_ones_the_lowest_wins_within_a_block_and_across_blocks() -> None:
    logits = torch.zeros(3, 1000)
    logits[0, [3, 200, 255]] = 1.0
    logits[1, [255, 256, 999]] = 1.0
    logits[2, [998, 999]] = 1.0
    assert best_tokens(logits).tolist() == [3, 255, 998]


def test_rows_may_lie_apart_in_memory() -> None:
    wide = torch.randn(8, 2000, generator=torch.Generator().manual_seed(1))
    assert best_tokens(wide[:, 500:1500]).tolist() == wide[:, 500:1500].argmax(dim=1).tolist()
