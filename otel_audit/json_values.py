"""Turn any value that a caller passes into one that JSON can hold, so that an odd value never costs the event."""

from __future__ import annotations

import datetime
import enum
import itertools
import math
from collections.abc import Container, Iterable, Mapping, Set
from typing import Any

__all__ = ["INT64_MAX", "INT64_MIN", "TOO_MANY", "JsonValues", "free_key", "safe_text"]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1  # the range of OTLP and the stores. Source: OTLP AnyValue.int_value
TOO_DEEP, TOO_MANY = "[too deep]", "[too many values]"
_MAX_VALUES = 4096  # nested lists that share items grow without bound even if they are not deep


def safe_text(text: str) -> str:
    """Return the text as a plain `str` that UTF-8 can encode.

    A lone surrogate becomes U+FFFD, and a pair its character.
    """
    plain = str.__str__(text)
    try:
        plain.encode()
    except UnicodeEncodeError:
        return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return plain


class JsonValues:
    """Convert the values of one event to JSON-safe ones. Never raises an `Exception`.

    `depth` is how many levels of lists and mappings are kept below a field. Of each, `items` plus one entries are kept
    at most, so that the caller can see that there were more.
    """

    __slots__ = ("_depth", "_items", "_left")

    def __init__(self, *, depth: int, items: int) -> None:
        self._depth = depth
        self._items = items
        self._left = _MAX_VALUES

    def of_field(self, value: object) -> Any:
        """Return a field of the event as a JSON-safe value.

        NaN is kept: as `duration_ms` it is written as null, as in Feast.
        """
        return value if type(value) is float else self._of(value, self._depth)

    def _of(self, value: object, depth: int) -> Any:
        self._left -= 1
        try:
            return TOO_MANY if self._left < 0 else self._converted(value, depth)
        except Exception:  # the caller's object may fail in any way
            return _unreadable(value)

    def _converted(self, value: object, depth: int) -> Any:
        match value:
            case None | True | False:
                return value
            case str():
                return safe_text(value)
            case int():
                return _integer(int.__index__(value))
            case float():
                return _number(float.__float__(value))
            case Mapping() | list() | tuple() | Set():
                return self._container(value, depth - 1) if depth > 0 else TOO_DEEP
        plain = _plain_scalar(value)
        return _other(value) if plain is None else self._converted(plain, depth)

    def _container(self, value: Mapping[Any, Any] | Iterable[Any], depth: int) -> Any:
        if isinstance(value, Mapping):
            return self._object(value, depth)
        return [self._of(item, depth) for item in itertools.islice(value, self._items + 1)]

    def _object(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in itertools.islice(value.items(), self._items + 1):
            found[free_key(self.key(key), found)] = self._of(item, depth)
        return found

    def key(self, key: object) -> str:
        """Return the key of a mapping as text."""
        converted = self._of(key, 0)
        return converted if type(converted) is str else str(converted)


def free_key(key: str, taken: Container[str]) -> str:
    """Return the key, or the first of `key#2`, `key#3`, ... that is free, since two keys may become the same text."""
    if key not in taken:
        return key
    return next(name for n in itertools.count(2) if (name := f"{key}#{n}") not in taken)


def _integer(value: int) -> int | str:
    if INT64_MIN <= value <= INT64_MAX:
        return value
    # Python refuses to write a number of more than 4300 digits in decimal.
    return str(value) if value.bit_length() < 4096 else hex(value)


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _plain_scalar(value: Any) -> bool | int | float | str | None:
    """Return the Python value of a number from an array library such as numpy, or None for anything else."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "dtype"):
        return None
    plain = value.item()
    return plain if isinstance(plain, bool | int | float | str) else None


def _other(value: object) -> str:
    match value:
        case bytes() | bytearray() | memoryview():
            return bytes(value).decode("utf-8", "replace")
        case enum.Enum():
            return safe_text(str(value.value))
        case datetime.date() | datetime.time():
            return safe_text(value.isoformat())
    return safe_text(str(value))


def _unreadable(value: object) -> str:
    try:
        return f"[unreadable {safe_text(type(value).__name__)}]"
    except Exception:  # a metaclass can break even the name of a class
        return "[unreadable]"
