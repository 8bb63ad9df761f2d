"""Numbers, names of lines, and queries, written as Grafana writes them: for pictures of panels."""

import math
import re
from collections.abc import Mapping

_VARIABLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_SI = (("G", 1e9), ("M", 1e6), ("K", 1e3))
_IEC = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_BYTES = (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3))
_TIMES = (("day", 86400.0), ("hour", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def write_value(value: float, unit: str) -> str:
    """Return a number with its unit, at three digits.

    Raises:
        ValueError: no panel has this unit.
    """
    if math.isnan(value):
        return "no value"
    if unit == "short":
        return _scaled(value, _SI, "")
    if unit == "bytes":
        return _scaled(value, _IEC, "B")
    if unit == "Bps":
        return _scaled(value, _BYTES, "B/s")
    if unit == "s":
        return _time(value)
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "currencyUSD":
        return f"${value:,.2f}"
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    raise ValueError(f"no panel has the unit {unit!r}")


def name_line(legend: str, labels: Mapping[str, str]) -> str:
    """Return the name of a line: a legend with the labels of its series filled in."""
    return _VARIABLE.sub(lambda found: labels.get(found[1], ""), legend)


def fill(query: str, values: Mapping[str, str]) -> str:
    """Return a query with values in place of its variables, such as `$namespace`."""
    for name in sorted(values, key=len, reverse=True):
        query = query.replace(f"${name}", values[name])
    return query


def _scaled(value: float, steps: tuple[tuple[str, float], ...], smallest: str) -> str:
    for name, size in steps:
        if abs(value) >= size:
            return f"{_short(value / size)} {name}"
    return f"{_short(value)} {smallest}".rstrip()


def _time(value: float) -> str:
    if value == 0:
        return "0 s"
    for name, size in _TIMES:
        if abs(value) >= size:
            return f"{_short(value / size)} {name}"
    return f"{_short(value / 1e-9)} ns"


def _short(value: float) -> str:
    """Three digits, and none behind the point that say nothing."""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"
