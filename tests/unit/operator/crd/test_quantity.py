from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glinthawk_operator.crd.quantity import (
    QuantityError,
    format_bytes,
    format_cores,
    parse_bytes,
    parse_cores,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("128974848", 128974848),
        ("16Gi", 16 << 30),
        ("1.5Gi", 3 << 29),
        (".5Ki", 512),
        ("3.", 3),
        ("129e6", 129_000_000),
        ("129E6", 129_000_000),
        ("1e-3", Fraction(1, 1000)),
        ("2E", 2 * 10**18),
        ("2Ei", 2 << 60),
        ("129M", 129_000_000),
        ("5k", 5000),
        ("1Ki", 1024),
        ("250m", Fraction(1, 4)),
        ("7u", Fraction(7, 10**6)),
        ("7n", Fraction(7, 10**9)),
        ("0.1", Fraction(1, 10)),
    ],
)
def test_quantities_have_the_value_that_kubernetes_gives_them(
    text: str, value: int | Fraction
) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " 1", "1 ", "1\n", "-1", "+1", "1K", "1ki", "1g", "1GiB", "1 Gi", "1e", "1e+"),
        *("1e100", ".", "Gi", "1.2.3", "0x10", "1_000", "٣", "1" * 33),
    ],
)
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    with pytest.raises(QuantityError) as caught:
        parse_quantity(text)
    assert repr(text) in str(caught.value)


def test_a_part_of_a_byte_counts_as_a_byte() -> None:
    assert parse_bytes("0.3Ki") == 308
    assert parse_bytes("512m") == 1
    assert parse_bytes("1Ki") == 1024


def test_cores_are_exact_to_a_thousandth() -> None:
    assert parse_cores("1500m") == Fraction(3, 2) == parse_cores("1.5")
    with pytest.raises(QuantityError, match=r"'0\.0001' is finer than a thousandth of a core"):
        parse_cores("0.0001")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0"), (1, "1"), (1023, "1023"), (1024, "1Ki"), (3 << 29, "1536Mi"), (1 << 60, "1Ei")],
)
def test_bytes_are_written_in_the_largest_unit_that_is_exact(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("cores", "text"), [(2, "2"), (Fraction(3, 2), "1500m"), (Fraction(1, 1000), "1m"), (0, "0")]
)
def test_cores_are_written_whole_or_in_thousandths(cores: Fraction | int, text: str) -> None:
    assert format_cores(cores) == text


def test_what_cannot_be_written_is_refused_by_name() -> None:
    with pytest.raises(QuantityError, match="-1 bytes"):
        format_bytes(-1)
    with pytest.raises(QuantityError, match="1/3 cores"):
        format_cores(Fraction(1, 3))
    with pytest.raises(QuantityError, match="-1 cores"):
        format_cores(-1)


@given(st.integers(0, 1 << 70))
def test_bytes_survive_writing_and_reading(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == num_bytes


@given(st.integers(0, 10**7))
def test_cores_survive_writing_and_reading(thousandths: int) -> None:
    cores = Fraction(thousandths, 1000)
    assert parse_cores(format_cores(cores)) == cores
