"""Counter-based noise: the same number for the same (seed, choice, position, token id), always.

Nothing is drawn in order, so batch, topology, replay and restart do not matter. The hash is a
chain of splitmix64 (Steele, Lea, Flood 2014), all modulo 2^64:

    mix(z)  = z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB;
              z ^ (z >> 31)
    G       = 0x9E3779B97F4A7C15
    key     = mix(mix(mix(seed + G) + G (choice + 1)) + G (position + 1))
    h       = mix(key + G (token + 1))            token's number in the stream of state `key`
    u       = ((h >> 12) + 1/2) / 2^52            in [2^-53, 1 - 2^-53]: never 0, never 1
    gumbel  = -log(-log(u))                       in float64, [-3.61, 36.74]

torch has no shifts of unsigned numbers: it computes in int64 and clears what an arithmetic
shift drags in.
"""

import numpy as np
import numpy.typing as npt
import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def noise_keys(
    seeds: npt.NDArray[np.uint64],
    choices: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.uint64],
) -> npt.NDArray[np.int64]:
    """Return the key of each sampled token: [n], the bits of a uint64."""
    golden, one = np.uint64(_GOLDEN), np.uint64(1)
    key = _mix(seeds + golden)
    key = _mix(key + golden * (choices + one))
    key = _mix(key + golden * (positions + one))
    return key.view(np.int64)


def token_counters(tokens: torch.Tensor) -> torch.Tensor:
    """Return G (token + 1) of int64 token ids: what `gumbel` adds to keys."""
    return (tokens + 1) * _signed(_GOLDEN)


def gumbel(keys: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise, float64 [n, tokens].

    keys: int64 [n]. counters: int64 [tokens] or [n, tokens], from `token_counters`.
    """
    noise = uniform(keys, counters)
    return noise.log_().neg_().log_().neg_()


def uniform(keys: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
    """Return uniform noise in (0, 1), float64 [n, tokens]; arguments as of `gumbel`."""
    z = counters + keys[:, None]
    shifted = torch.empty_like(z)
    _xor_shifted(z, 30, shifted)
    z.mul_(_signed(_FIRST))
    _xor_shifted(z, 27, shifted)
    z.mul_(_signed(_SECOND))
    _xor_shifted(z, 31, shifted)
    z.bitwise_right_shift_(12).bitwise_and_((1 << 52) - 1)
    return z.double().add_(0.5).mul_(2.0**-52)


def _xor_shifted(z: torch.Tensor, bits: int, shifted: torch.Tensor) -> None:
    """z ^= z >> bits, as if z were unsigned."""
    torch.bitwise_right_shift(z, bits, out=shifted)
    z.bitwise_xor_(shifted.bitwise_and_((1 << (64 - bits)) - 1))


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def _signed(value: int) -> int:
    """Return the int64 with the bits of a uint64."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
