"""One rule of the resource, and those that several parts have in common."""

from dataclasses import dataclass
from typing import Literal

Cause = Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    holds: CEL that is true of a good part. message: for one that is not. said: CEL that gives the
    message with the actual values, None where there is nothing to add. field: below the part, to
    which the message belongs.
    """

    holds: str
    message: str
    said: str | None = None
    field: str | None = None
    cause: Cause = "FieldValueInvalid"


_MEBIBYTE = "quantity('1Mi')"
_KEY = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


def at_least_a_mebibyte(field: str) -> Rule:
    """Return that a size has its unit: what is smaller has none, or an m meant as M."""
    return Rule(
        holds=f"quantity(string(self.{field})).compareTo({_MEBIBYTE}) >= 0",
        message=f"{field} is below 1Mi: write it with a unit, like 16Gi (m is a thousandth)",
        said=f"'{field} is ' + string(self.{field}) + ' bytes, below 1Mi: write it with a unit, "
        "like 16Gi (m is a thousandth)'",
        field=field,
    )


def at_least_a_byte(field: str) -> Rule:
    """Return that a size in bytes is no fraction of one."""
    return Rule(
        holds=f"quantity(string(self.{field})).compareTo(quantity('1')) >= 0",
        message=f"{field} is below one byte: write it like 16Mi (m is a thousandth)",
        field=field,
    )


def unchanged_size(field: str, way_out: str) -> Rule:
    """Return that the size of a volume stays. way_out: what to do instead."""
    return Rule(
        holds=f"quantity(string(self.{field})).compareTo(quantity(string(oldSelf.{field}))) == 0",
        message=f"{field} cannot change once the volumes exist: {way_out}",
        field=field,
        cause="FieldValueForbidden",
    )


def unchanged_class(way_out: str) -> Rule:
    """Return that the class of a volume stays. way_out: what to do instead."""
    name = "storageClassName"
    return Rule(
        holds=f"has(self.{name}) == has(oldSelf.{name}) && "
        f"(!has(self.{name}) || self.{name} == oldSelf.{name})",
        message=f"{name} cannot change once the volumes exist: {way_out}",
        cause="FieldValueForbidden",
    )


def keys_are_qualified(field: str) -> Rule:
    """Return that the keys of a map are ones that Kubernetes takes."""
    return Rule(
        holds=f"!has(self.{field}) || self.{field}.all(key, size(key) <= 317 && "
        f"key.matches('{_KEY}'))",
        message=f"{field} has a key that Kubernetes does not take: write it like team or "
        "example.com/team, of letters, digits, dots and dashes",
        field=field,
    )


def bounds_in_order(low: str, high: str) -> Rule:
    """Return that one field is not above another."""
    return Rule(
        holds=f"self.{low} <= self.{high}",
        message=f"{low} is above {high}: lower {low} or raise {high}",
        field=low,
    )
