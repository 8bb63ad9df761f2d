"""Numbers, names and queries as Grafana writes them."""

import pytest

from dashboards.__main__ import BOARDS
from dashboards.units import fill, name_line, write_value

EXPECTED = [
    (0.0, "short", "0"),
    (7.0, "short", "7"),
    (1234.0, "short", "1.23 K"),
    (2_500_000.0, "short", "2.5 M"),
    (1536.0, "bytes", "1.5 KiB"),
    (12.0, "bytes", "12 B"),
    (3 * 2.0**30, "bytes", "3 GiB"),
    (1_500_000.0, "Bps", "1.5 MB/s"),
    (0.0, "s", "0 s"),
    (0.0125, "s", "12.5 ms"),
    (90.0, "s", "1.5 min"),
    (2e-5, "s", "20 µs"),
    (0.456, "percentunit", "45.6%"),
    (1234.5, "currencyUSD", "$1,234.50"),
    (1.0, "bool_yes_no", "Yes"),
    (0.0, "bool_yes_no", "No"),
    (float("nan"), "s", "no value"),
]


@pytest.mark.parametrize(("value", "unit", "text"), EXPECTED)
def test_numbers_have_three_digits_and_their_unit(value: float, unit: str, text: str) -> None:
    assert write_value(value, unit) == text


def test_every_panels_unit_can_be_written_and_others_are_refused() -> None:
    units = {plot.unit for board in BOARDS.values() for row in board.rows for plot in row.plots}
    assert all(write_value(1.0, unit) for unit in units)
    with pytest.raises(ValueError, match="furlong"):
        write_value(1.0, "furlong")


def test_a_legend_takes_labels_of_its_series() -> None:
    assert name_line("{{method}} {{ route }}", {"method": "GET", "route": "/v1"}) == "GET /v1"
    assert name_line("{{absent}}x", {}) == "x"


def test_longer_names_of_variables_are_filled_in_first() -> None:
    values = {"stage": "wrong", "stage_price": "0.35"}
    assert fill("sum(a) * $stage_price", values) == "sum(a) * 0.35"
