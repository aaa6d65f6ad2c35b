"""Finds the secrets in a text, and replaces them.

The look (`has_secret`) and the replacement (`without_secrets`) are made from the same patterns, so that nothing is seen
by one and not by the other. Everything runs on RE2, whose time is linear in the text: a hostile text costs no more
than any other of its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import re2

from otel_audit.redaction.secret_pattern import REDACTED, SecretPattern
from otel_audit.redaction.secret_patterns import PATTERNS

__all__ = ["SCREEN", "Screen", "has_secret", "without_secrets"]

_REDACTED = REDACTED.encode()
_MAX_ROUNDS: Final = 8
# Parts that look like secrets and are none are looked at again from their second character on. A text that is made of
# little else ("pass=pass=pass=...") would take the square of its length: from here on, what looks like one is one.
_PATIENCE: Final = 8
_PATIENCE_BYTES: Final = 4096

# Characters that are not seen: a secret copied from a page may hold one, and is the same secret to a reader. Soft
# hyphen; zero-width spaces, joiners and marks of direction; word joiner and other invisible operators; BOM.
_INVISIBLE: Final = rb"\xc2\xad|\xe2\x80[\x8b-\x8f\xaa-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf"


class Screen:
    """The secrets that the table of patterns knows, and those of `own` patterns of the user. Immutable; any thread.

    `find(text)` is what `has_secret` asks: None where there is nothing.
    """

    __slots__ = ("_sets", "find")

    def __init__(self, own: Iterable[SecretPattern] = ()) -> None:
        own = tuple(own)
        self._sets = (_TABLE, _PatternSet(own, re2.Options.Encoding.UTF8)) if own else (_TABLE,)
        self.find: Callable[[bytes], list[int] | None] = self._find if own else _TABLE.find

    def has_secret(self, text: bytes) -> bool:
        """Whether a pattern matches somewhere in this UTF-8 text. May be true where `without_secrets` removes nothing.

        True for one of several texts means true for all of them joined with a newline.
        """
        return self.find(text) is not None

    def _find(self, text: bytes) -> list[int] | None:
        return next((found for patterns in self._sets if (found := patterns.find(text)) is not None), None)

    def without_secrets(self, text: str) -> str:
        """The text with the secret part of every match replaced by `[REDACTED]`; the same text when there is none.

        The result is screened again, until nothing more is found; a text that does not settle is replaced as a whole.
        A secret with invisible characters in it is found too; all of them go with it.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
        """
        data = text.encode()
        if not self.has_secret(data):
            return text
        return self._settled_as_seen(data).decode()

    def _settled_as_seen(self, data: bytes) -> bytes:
        """The settled text; where its invisible characters hide a secret, the text without them."""
        settled, visible = self._settled(data), _INVISIBLE_REGEX.sub(b"", data)
        if visible == data:
            return settled
        seen = self._settled(visible)
        if seen == visible:
            return settled
        if settled == data:
            return seen
        # A secret that ends at such a character and goes on behind it would leave its second half: two readings of
        # one text that do not agree leave nothing.
        return settled if _INVISIBLE_REGEX.sub(b"", settled) == seen else _REDACTED

    def _settled(self, data: bytes) -> bytes:
        for _ in range(_MAX_ROUNDS):
            before = data
            for patterns in self._sets:
                data = patterns.replaced(data)
            if data == before:
                return data
        return _REDACTED


class _PatternSet:
    """Patterns, each by itself and all at once."""

    __slots__ = ("_patterns", "_regexes", "find")

    def __init__(self, patterns: tuple[SecretPattern, ...], encoding: re2.Options.Encoding) -> None:
        self._patterns = patterns
        self._regexes = tuple(re2.compile(pattern.regex.encode(), _options(encoding)) for pattern in patterns)
        options = _options(encoding)
        options.max_mem = 64 << 20  # a set that runs out of memory finds nothing, silently; this is an upper bound only
        every = re2.Set.SearchSet(options)
        for pattern in patterns:
            every.Add((pattern.sign or pattern.regex).encode())
        if encoding == re2.Options.Encoding.LATIN1:
            every.Add(_INVISIBLE)
        every.Compile()
        self.find: Callable[[bytes], list[int] | None] = every.Match

    def replaced(self, data: bytes) -> bytes:
        """All secret parts that are found, replaced, pattern by pattern in their order."""
        for index in sorted(self.find(data) or ()):
            if index < len(self._patterns):
                data = self._replaced_by(index, data)
        return data

    def _replaced_by(self, index: int, data: bytes) -> bytes:
        regex, is_secret = self._regexes[index], self._patterns[index].is_secret
        groups = range(1, regex.groups + 1)  # counted once: a hostile text has a match in every few bytes
        pieces: list[bytes] = []
        done = position = doubted = 0
        patience = _PATIENCE * len(data) + _PATIENCE_BYTES
        while position <= len(data) and (match := regex.search(data, position)) is not None:
            start, end = _secret_span(match, groups)
            if doubted > patience or is_secret(data[start:end]):
                pieces += (data[done:start], _REDACTED)
                done = position = end
            else:
                # On from the part, not from behind it: it may itself begin a match ("token: Bearer ...").
                position = max(start, position + 1)
                doubted += end - start
        pieces.append(data[done:])
        return b"".join(pieces)


def _options(encoding: re2.Options.Encoding) -> re2.Options:
    options = re2.Options()
    options.encoding = encoding
    return options


def _secret_span(match: re2._Match, groups: Iterable[int]) -> tuple[int, int]:
    for group in groups:
        span: tuple[int, int] = match.span(group)
        if span[0] >= 0:
            return span
    whole: tuple[int, int] = match.span()
    return whole


_INVISIBLE_REGEX: Final = re2.compile(_INVISIBLE, _options(re2.Options.Encoding.LATIN1))
_TABLE: Final = _PatternSet(PATTERNS, re2.Options.Encoding.LATIN1)

SCREEN: Final = Screen()
has_secret = SCREEN.has_secret
without_secrets = SCREEN.without_secrets
