import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from glinthawk.stage.noise import gumbel, noise_keys, token_counters, uniform

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def uniform_by_definition(seed: int, choice: int, position: int, token: int) -> float:
    key = mix((seed + GOLDEN) & MASK)
    key = mix((key + GOLDEN * (choice + 1)) & MASK)
    key = mix((key + GOLDEN * (position + 1)) & MASK)
    h = mix((key + GOLDEN * (token + 1)) & MASK)
    return ((h >> 12) + 0.5) / 2**52


def keys_of(seeds: list[int], choices: list[int], positions: list[int]) -> torch.Tensor:
    columns: list[npt.NDArray[np.uint64]] = [
        np.array(column, dtype=np.uint64) for column in (seeds, choices, positions)
    ]
    return torch.from_numpy(noise_keys(*columns))


def test_noise_is_the_documented_hash() -> None:
    seeds, choices, positions = [0, MASK, 12345678901234567890], [0, 7, 1], [0, 1000, 2**31]
    tokens = [0, 1, 49151, 151935]
    noise = uniform(keys_of(seeds, choices, positions), token_counters(torch.tensor(tokens)))
    expected = [
        [uniform_by_definition(*key, token) for token in tokens]
        for key in zip(seeds, choices, positions, strict=True)
    ]
    assert noise.tolist() == expected


def test_the_first_splitmix64_numbers_are_the_published_ones() -> None:
    # Seed 1234567 of the reference implementation.
    state = 1234567
    assert [mix((state + GOLDEN * n) & MASK) for n in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_noise_does_not_depend_on_the_shape_of_the_batch() -> None:
    keys = keys_of(list(range(20)), [0] * 20, list(range(20)))
    counters = token_counters(torch.arange(1000))
    together = gumbel(keys, counters)
    for row in range(20):
        assert torch.equal(gumbel(keys[row : row + 1], counters)[0], together[row])
    some = token_counters(torch.tensor([[5, 999], [999, 0]]))
    picked = gumbel(keys[:2], some)
    expected = torch.stack([together[0, [5, 999]], together[1, [999, 0]]])
    torch.testing.assert_close(picked, expected, rtol=1e-15, atol=0)


def test_uniforms_are_uniform_and_independent_over_every_coordinate() -> None:
    base = uniform(keys_of([3], [0], [5]), token_counters(torch.arange(100_000)))[0]
    by_position = uniform(
        keys_of([3] * 5000, [0] * 5000, list(range(5000))), token_counters(torch.arange(4))
    )
    by_seed = uniform(
        keys_of(list(range(5000)), [0] * 5000, [9] * 5000), token_counters(torch.arange(4))
    )
    for sample in (base, by_position[:, 0], by_seed[:, 0]):
        assert sample.min() > 0
        assert sample.max() < 1
        assert stats.kstest(sample.numpy(), "uniform").pvalue > 1e-3
    for pairs in (by_position, by_seed):
        table, _, _ = np.histogram2d(pairs[:, 0].numpy(), pairs[:, 1].numpy(), bins=10)
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_extreme_uniforms_give_finite_noise() -> None:
    ends = torch.tensor([0.5 / 2**52, 1 - 0.5 / 2**52], dtype=torch.float64)
    low, high = ends.log_().neg_().log_().neg_().tolist()
    assert -3.62 < low < -3.6
    assert 36.7 < high < 36.8
