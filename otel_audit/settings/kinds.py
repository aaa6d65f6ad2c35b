"""The kinds of values that settings have: each describes what it expects, and reads a text or a Python value."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

from otel_audit.settings.setting import Mismatch

__all__ = [
    "AnyPath",
    "ByteCount",
    "Choice",
    "ExistingPath",
    "FileMode",
    "Milliseconds",
    "Seconds",
    "Switch",
    "WholeNumber",
]

E = TypeVar("E", bound=StrEnum)

# No more digits than Python reads: it refuses thousands of them.
_DIGITS = re.compile(r"[+-]?[0-9]{1,99}")
_BYTES = re.compile(r"([0-9]{1,99})\s*(KiB|MiB|GiB)?", re.IGNORECASE)
_BYTES_BY_SUFFIX = {"kib": 1024, "mib": 1024**2, "gib": 1024**3}
_SWITCH_BY_WORD = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """A whole number, both ends of the range included."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"a whole number from {self.low} to {self.high}"

    def parse(self, given: object) -> int:
        """See `Kind`."""
        return _within(_whole(given), self.low, self.high)


@dataclass(frozen=True, slots=True)
class ByteCount:
    """A number of bytes; texts may end in KiB, MiB or GiB."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"bytes from {_in_binary_units(self.low)} to {_in_binary_units(self.high)}"

    def parse(self, given: object) -> int:
        """See `Kind`."""
        match = _BYTES.fullmatch(given.strip()) if isinstance(given, str) else None
        if match is None:
            return _within(_whole(given), self.low, self.high)
        number, suffix = match.groups()
        return _within(int(number) * _BYTES_BY_SUFFIX.get((suffix or "").lower(), 1), self.low, self.high)


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time in seconds, fractions allowed, both ends included. `when_above`: what to do about a greater number."""

    low: float
    high: float
    when_above: str = ""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"seconds from {self.low:.12g} to {self.high:.12g}"

    def parse(self, given: object) -> float:
        """See `Kind`."""
        seconds = _real(given)
        if seconds > self.high:
            raise Mismatch(self.when_above)
        return _within(seconds, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Milliseconds:
    """A time in whole milliseconds, as OTel's variables count, read into seconds."""

    low_s: float
    high_s: float

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"milliseconds from {self.low_s * 1000:.0f} to {self.high_s * 1000:.0f}"

    def parse(self, given: object) -> float:
        """See `Kind`."""
        return _within(_whole(given) / 1000, self.low_s, self.high_s)


@dataclass(frozen=True, slots=True)
class Choice(Generic[E]):
    """One word of a closed set, in any case. `refused`: words that are known, and why they are not accepted."""

    words: type[E]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"one of {', '.join(self.words)}"

    def parse(self, given: object) -> E:
        """See `Kind`."""
        word = given.strip().lower() if isinstance(given, str) else ""
        try:
            return self.words(word)
        except ValueError:
            raise Mismatch(self.refused.get(word, "")) from None


@dataclass(frozen=True, slots=True)
class Switch:
    """True or false."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "true or false"

    def parse(self, given: object) -> bool:
        """See `Kind`."""
        if isinstance(given, bool):
            return given
        word = given.strip().lower() if isinstance(given, str) else ""
        if word not in _SWITCH_BY_WORD:
            raise Mismatch
        return _SWITCH_BY_WORD[word]


@dataclass(frozen=True, slots=True)
class FileMode:
    """Permission bits of files that we make: the owner reads and writes, nobody executes, others never write."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "an octal file mode from 0600 to 0664, without execute bits"

    def parse(self, given: object) -> int:
        """See `Kind`."""
        mode = _octal(given) if isinstance(given, str) else _whole(given)
        if mode & 0o600 != 0o600 or mode & ~0o664:
            raise Mismatch
        return mode


@dataclass(frozen=True, slots=True)
class AnyPath:
    """A path, made absolute at once: the process may change its directory later."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a path, with ~ written out"

    def parse(self, given: object) -> Path:
        """See `Kind`."""
        text = os.fspath(given) if isinstance(given, str | Path) else ""
        if not text.strip() or text.startswith("~") or "\0" in text:
            raise Mismatch
        return Path(os.path.abspath(text))


@dataclass(frozen=True, slots=True)
class ExistingPath:
    """A path where something is at start-up. Whether it can be used is found out by who opens it."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "the path of an existing file"

    def parse(self, given: object) -> str:
        """See `Kind`."""
        path = AnyPath().parse(given)
        if not os.path.exists(path):
            raise Mismatch("there is no such file, or it may not be read")
        return str(path)


def _whole(given: object) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str) and _DIGITS.fullmatch(given.strip()):
        return int(given)
    raise Mismatch


def _octal(text: str) -> int:
    try:
        return int(text.strip(), 8)
    except ValueError:
        raise Mismatch from None


def _real(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise Mismatch
    try:
        number = float(given)
    except (ValueError, OverflowError):
        raise Mismatch from None
    if not math.isfinite(number):
        raise Mismatch
    return number


N = TypeVar("N", int, float)


def _within(number: N, low: N, high: N) -> N:
    if not low <= number <= high:
        raise Mismatch
    return number


def _in_binary_units(number: int) -> str:
    for suffix, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if number and number % size == 0:
            return f"{number} ({number // size} {suffix})"
    return str(number)
