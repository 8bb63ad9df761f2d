"""Kubernetes quantities, such as 16Gi and 500m, to exact numbers and back.

Exact, because what is compared here decides whether a stage fits a GPU. A float never appears.
"""

import math
import re
from fractions import Fraction

PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,2})?$"
"""What this module reads: quantities that are not negative. Also the pattern in the schema."""

MAX_LENGTH = 32
"""Characters of a quantity: more than any size that exists needs."""

_QUANTITY = re.compile(PATTERN)
_BINARY = {f"{unit}i": Fraction(1024**power) for power, unit in enumerate("KMGTPE", start=1)}
_DECIMAL = {unit: Fraction(1000**power) for power, unit in enumerate("kMGTPE", start=1)}
_SMALL = {"n": Fraction(1, 1000**3), "u": Fraction(1, 1000**2), "m": Fraction(1, 1000)}
_FACTORS = {"": Fraction(1)} | _BINARY | _DECIMAL | _SMALL


class QuantityError(ValueError):
    """A text is no quantity, or none of the kind that is asked for."""


def parse_quantity(text: str) -> Fraction:
    """Return the value of a quantity.

    Raises:
        QuantityError: it is none, or negative.
    """
    match = _QUANTITY.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        raise QuantityError(
            f"{text!r} is no quantity: write it like 16Gi, 500M, 250m or 1048576, not negative "
            f"and in at most {MAX_LENGTH} characters"
        )
    number, suffix = Fraction(match[1]), match[3] or ""
    if suffix in _FACTORS:
        return number * _FACTORS[suffix]
    return number * Fraction(10) ** int(suffix[1:])


def parse_bytes(text: str) -> int:
    """Return the bytes of a quantity; a part of a byte counts as a whole one, as in Kubernetes.

    Raises:
        QuantityError: it is no quantity.
    """
    return math.ceil(parse_quantity(text))


def parse_cores(text: str) -> Fraction:
    """Return the CPU cores of a quantity, exact to a thousandth, as Kubernetes counts them.

    Raises:
        QuantityError: it is no quantity, or finer than a thousandth of a core.
    """
    value = parse_quantity(text)
    if (value * 1000).denominator != 1:
        raise QuantityError(
            f"{text!r} is finer than a thousandth of a core: write it like 500m, 1.5 or 8"
        )
    return value


def format_bytes(num_bytes: int) -> str:
    """Return bytes as a quantity, with the largest binary unit that keeps it exact.

    Raises:
        QuantityError: it is negative.
    """
    if num_bytes < 0:
        raise QuantityError(f"{num_bytes} bytes cannot be written: a size is not negative")
    for suffix in reversed(_BINARY):
        unit = _BINARY[suffix].numerator
        if num_bytes and num_bytes % unit == 0:
            return f"{num_bytes // unit}{suffix}"
    return str(num_bytes)


def format_cores(cores: Fraction | int) -> str:
    """Return CPU cores as a quantity.

    Raises:
        QuantityError: it is negative, or finer than a thousandth of a core.
    """
    thousandths = Fraction(cores) * 1000
    if thousandths < 0 or thousandths.denominator != 1:
        raise QuantityError(
            f"{cores} cores cannot be written: cores come in thousandths, and are not negative"
        )
    if thousandths % 1000 == 0:
        return str(thousandths.numerator // 1000)
    return f"{thousandths.numerator}m"
