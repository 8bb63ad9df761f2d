import numpy as np
import pytest

from glinthawk.attention.merge import merge_partials


def test_parts_are_weighted_by_their_share_of_the_exponentials() -> None:
    outs = np.array([[[[1.0]]], [[[4.0]]]], np.float32)
    lses = np.log(np.array([[[1.0]], [[2.0]]], np.float32))
    out, lse = merge_partials(outs, lses)
    np.testing.assert_allclose(out, [[[3.0]]], rtol=1e-6)
    np.testing.assert_allclose(lse, np.log([[3.0]]), rtol=1e-6)


def test_an_empty_part_counts_nothing() -> None:
    outs = np.array([[[[1.0]]], [[[0.0]]]], np.float32)
    lses = np.array([[[50.0]], [[-np.inf]]], np.float32)
    out, lse = merge_partials(outs, lses)
    assert out.item() == 1.0
    assert lse.item() == 50.0


def test_only_empty_parts_give_an_empty_result() -> None:
    out, lse = merge_partials(
        np.zeros((2, 1, 1, 1), np.float32), np.full((2, 1, 1), -np.inf, np.float32)
    )
    assert out.item() == 0.0
    assert np.isneginf(lse).all()


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        merge_partials(np.zeros((2, 1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32))
