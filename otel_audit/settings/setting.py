"""One row of the table of settings: its names, its kind of value, how it is displayed, and where it came from.

Each kind of value describes what it expects, and reads a text or a Python value.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

__all__ = [
    "PREFIX",
    "RESERVED",
    "AnyPath",
    "ByteCount",
    "Choice",
    "ExistingPath",
    "FileMode",
    "Kind",
    "Milliseconds",
    "Mismatch",
    "Origin",
    "Provenance",
    "Seconds",
    "Setting",
    "Switch",
    "Variable",
    "WholeNumber",
    "known_names",
    "unknown_variables",
]


T_co = TypeVar("T_co", covariant=True)

_MASK = "****"
_SHOWN_CHARS = 80
# Up to the last `@`, so that a password with an unescaped `/` is not shown either.
_USERINFO = re.compile(r"(?<=://)\S*@|(?<![^\s'\"])[^\s/'\"]+:(?!//)[^\s'\"]*@")  # even if the scheme was forgotten
_QUERY = re.compile(r"(://[^\s?]*\?)\S+")  # some vendors take a token there


class Mismatch(Exception):
    """A value is not of the expected kind. The text, if any, is the remedy."""


class Kind(Protocol[T_co]):
    """A kind of value: how it is described, and how it is read."""

    @property
    def expected(self) -> str:
        """Return the allowed values in words that follow "expected", with range and unit."""

    def parse(self, given: object) -> T_co:
        """Return the value of `given`, a text or a Python value.

        Raises:
            Mismatch: it is not of this kind.
        """


class Origin(StrEnum):
    """The place where a value was found, in the order of precedence."""

    CODE = "code"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


class Provenance(msgspec.Struct, frozen=True):
    """The source of a value. `where` is the variable, `file:line`, or what a default follows from."""

    origin: Origin
    where: str = ""

    def __str__(self) -> str:
        match self.origin:
            case Origin.FILE:
                return self.where
            case Origin.DEFAULT if self.where:
                return f"default, as {self.where}"
            case _:
                return f"{self.origin} {self.where}".rstrip()


class Variable(msgspec.Struct, Generic[T_co], frozen=True):
    """A variable for a setting. `kind` is given if its unit or its words differ from those of the setting."""

    name: str
    kind: Kind[T_co] | None = None


class Setting(msgspec.Struct, Generic[T_co], frozen=True):
    """One row of the table.

    The first of `variables` that is set wins, and wins over the YAML file. `fallbacks` are variables of OTel that only
    replace the default. `reason` explains the default.
    """

    name: str
    variables: tuple[Variable[T_co], ...]
    kind: Kind[T_co]
    default: T_co
    doc: str
    reason: str
    unit: str = ""
    default_text: str = ""
    fallbacks: tuple[Variable[T_co], ...] = ()
    secret: bool = False

    @property
    def default_words(self) -> str:
        """Return the default, for people."""
        return self.default_text or self.shown(self.default)

    def shown(self, value: object) -> str:
        """Return the value for display, with secrets masked, and without the password and query of a URL."""
        if self.secret:
            return _masked_pairs(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return f"{value:.12g}"
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return "none" if value is None else _masked_urls(str(value))

    def shown_given(self, given: object) -> str:
        """Return a refused value for its error message: masked, quoted if it is a text, and cut."""
        if self.secret:
            return "a value that is not shown"
        try:
            text = repr(_masked_urls(given)) if isinstance(given, str) else _masked_urls(repr(given))
        except ValueError:  # Python writes no whole number of more than 4300 digits
            return "a number of thousands of digits"
        return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _masked_urls(text: str) -> str:
    return _QUERY.sub(rf"\1{_MASK}", _USERINFO.sub(f"{_MASK}@", text))


def _masked_pairs(value: object) -> str:
    names = value if isinstance(value, Mapping) else dict(value) if isinstance(value, tuple) else {}
    return ",".join(f"{name}={_MASK}" for name in names) or "none"


PREFIX = "OTEL_AUDIT_"

# Names that our own test suite reads (a trailing `_`: all that start so). They may be set while the suite runs
# services with settings, and are no settings.
RESERVED = (
    "OTEL_AUDIT_TESTS_",
    "OTEL_AUDIT_KAFKA",
    "OTEL_AUDIT_OTELCOL",
    "OTEL_AUDIT_OTELCOL_KAFKA",
    "OTEL_AUDIT_VICTORIALOGS",
    "OTEL_AUDIT_VICTORIAMETRICS",
    "OTEL_AUDIT_VMALERT",
)


def known_names(name: str, names: Collection[str]) -> str:
    """Return the remedy for an unknown name: the closest valid ones, then all of them."""
    close = get_close_matches(name, names, n=2, cutoff=0.7)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}valid names: {', '.join(sorted(names))}"


def unknown_variables(environ: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the variables that look like ours and are not among `names`, sorted."""
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in names and not _is_reserved(name))


def _is_reserved(name: str) -> bool:
    return any(name == reserved or (reserved.endswith("_") and name.startswith(reserved)) for reserved in RESERVED)


E = TypeVar("E", bound=StrEnum)

# At most as many digits as Python reads, which refuses thousands of them.
_DIGITS = re.compile(r"[+-]?[0-9]{1,99}")
_BYTES = re.compile(r"([0-9]{1,99})\s*(KiB|MiB|GiB)?", re.IGNORECASE)
_BYTES_BY_SUFFIX = {"kib": 1024, "mib": 1024**2, "gib": 1024**3}
_SWITCH_BY_WORD = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


class WholeNumber(msgspec.Struct, frozen=True):
    """A whole number. Both ends of the range are included."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"a whole number from {self.low} to {self.high}"

    def parse(self, given: object) -> int:
        """See `Kind`."""
        return _within(_whole(given), self.low, self.high)


class ByteCount(msgspec.Struct, frozen=True):
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


class Seconds(msgspec.Struct, frozen=True):
    """A time in seconds.

    Fractions are allowed, and both ends are included. `when_above` is the remedy for a greater number.
    """

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


class Milliseconds(msgspec.Struct, frozen=True):
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


class Choice(msgspec.Struct, Generic[E], frozen=True):
    """One word of a closed set, in any case. `refused` are known words, each with the reason why it is not accepted."""

    words: type[E]
    refused: Mapping[str, str] = msgspec.field(default_factory=dict)

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


class Switch(msgspec.Struct, frozen=True):
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


class FileMode(msgspec.Struct, frozen=True):
    """Permission bits of our files: the owner reads and writes, nobody executes, and others never write."""

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


class AnyPath(msgspec.Struct, frozen=True):
    """A path. It is made absolute at once, since the process may change its directory later."""

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


class ExistingPath(msgspec.Struct, frozen=True):
    """A path at which something exists at start-up. The code that opens it finds out whether it can be used."""

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
