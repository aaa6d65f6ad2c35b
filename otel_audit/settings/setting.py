"""One row of the table of settings: its names, its value for people, and the origin of its value."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

__all__ = [
    "PREFIX",
    "RESERVED",
    "Kind",
    "Mismatch",
    "Origin",
    "Provenance",
    "Setting",
    "Variable",
    "known_names",
    "unknown_variables",
]


T_co = TypeVar("T_co", covariant=True)

_MASK = "****"
_SHOWN_CHARS = 80
# Up to the last `@`: a password with an unescaped `/` must not be shown either.
_USERINFO = re.compile(r"(?<=://)\S*@|(?<![^\s'\"])[^\s/'\"]+:(?!//)[^\s'\"]*@")  # also where the scheme was forgotten
_QUERY = re.compile(r"(://[^\s?]*\?)\S+")  # some vendors take a token there


class Mismatch(Exception):
    """A value is not of the kind that was expected. The text, if any, says what to do about it."""


class Kind(Protocol[T_co]):
    """What a value may be: how it is described, and how it is read."""

    @property
    def expected(self) -> str:
        """Return the allowed values in words, after `expected`, with range and unit."""

    def parse(self, given: object) -> T_co:
        """Return the value that `given`, a text or a Python value, stands for.

        Raises:
            Mismatch: it stands for none.
        """


class Origin(StrEnum):
    """Where the value of a setting was found, in the order in which they win."""

    CODE = "code"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a value came from. `where`: the variable, `file:line`, or what a default follows from."""

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


@dataclass(frozen=True, slots=True)
class Variable(Generic[T_co]):
    """A variable that sets a setting. `kind`: when it counts in another unit, or has other words, than the setting."""

    name: str
    kind: Kind[T_co] | None = None


@dataclass(frozen=True, slots=True)
class Setting(Generic[T_co]):
    """One row of the table.

    `variables`: the first one set wins, over the YAML file. `fallbacks`: variables of OTel that only replace the
    default. `reason`: why the default is what it is.
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
        """Return the value for people: secrets masked, and in URLs the password and the query."""
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
        """Return a value that was refused, for its error message: masked, quoted when it is a text, and cut."""
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
    """Return the variables that look like ours and are none of `names`, sorted."""
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in names and not _is_reserved(name))


def _is_reserved(name: str) -> bool:
    return any(name == reserved or (reserved.endswith("_") and name.startswith(reserved)) for reserved in RESERVED)
