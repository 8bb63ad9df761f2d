"""Strict reading of JSON fields: types as written, ranges named, nothing unknown accepted.

JSON's true is no number here, and a value of null means that the field was left out.
"""

import sys
from collections.abc import Mapping
from typing import Any

from glinthawk.errors import InvalidRequest

LARGEST_NUMBER = sys.float_info.max
"""The bound of a number that has no other; infinity and not-a-number lie beyond it."""

_SHOWN_CHARACTERS = 60


_WORDS = {None: "null", True: "true", False: "false"}


def shown(value: object) -> str:
    """Return `value` for an error message, cut to a bearable length; null, true and false as JSON
    has them."""
    text = _WORDS[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def name_kind(value: object) -> str:
    """Return what kind of JSON value this is, with its article."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def is_int(value: object) -> bool:
    """Say whether `value` is a JSON integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_text(value: object, param: str) -> str:
    """Return `value` if it is a string that UTF-8 can carry.

    Raises:
        InvalidRequest: it is no string, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{param} must be a string, not {shown(value)}", param=param)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{param} holds half of a surrogate pair at character {error.start}; "
            "write the whole character",
            param=param,
        ) from error
    return value


class Fields:
    """The fields of one JSON object. A field that is absent or null reads as its default."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def get(self, name: str) -> Any:
        """Return the value as it is, None if absent."""
        return self._body.get(name)

    def has(self, name: str) -> bool:
        """Say whether the field is there and not null."""
        return self._body.get(name) is not None

    def integer(self, name: str, *, low: int, high: int) -> int | None:
        """Return an integer of [low, high], or None if absent."""
        value = self._body.get(name)
        if value is None:
            return None
        if not is_int(value):
            raise InvalidRequest(f"{name} must be an integer, not {shown(value)}", param=name)
        if not low <= value <= high:
            raise InvalidRequest(
                f"{name} must be from {low} to {high}, not {shown(value)}", param=name
            )
        return int(value)

    def number(
        self, name: str, default: float, *, low: float, high: float, above: bool = False
    ) -> float:
        """Return a finite number of [low, high], or of (low, high] when `above`."""
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(f"{name} must be a number, not {shown(value)}", param=name)
        if not low <= value <= high or (above and value == low):
            limits = f"above {low:g}" if above else f"at least {low:g}"
            if high < LARGEST_NUMBER:
                limits += f" and at most {high:g}"
            raise InvalidRequest(f"{name} must be {limits}, not {shown(value)}", param=name)
        return float(value)

    def boolean(self, name: str) -> bool:
        """Return true or false; absent is false."""
        value = self._body.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} must be true or false, not {shown(value)}", param=name)
        return value
