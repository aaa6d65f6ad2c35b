"""Find the secrets in a text, and replace them.

`Screen` searches one text. Its quick check (`find`) and its replacement (`without_secrets`) use the same patterns, so
that neither sees what the other misses. `EventTexts` applies it to all texts of one event, and cuts them to their caps.
`SplitSecret` finds a secret that is spread over the items of a list, such as an option and its value.

Everything runs on RE2, whose time is linear in the text, and each text is searched a bounded number of times. So no
sender can raise the cost of a text beyond a constant factor.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
import re2

from otel_audit.redaction.caps import SHORTEST_CUT, Caps, beginning_of, cut_key, cut_text, marker_of, split_marker
from otel_audit.redaction.patterns import KEY_BEGIN, KEY_END, OPEN_AT_THE_END, OPTION, PATTERNS
from otel_audit.redaction.values import HINT, REDACTED, Reading, SecretPattern
from otel_audit.threads import FORKS_WAIT

__all__ = [
    "MARGIN_CHARS",
    "MOST_PARTS",
    "EventTexts",
    "Screen",
    "Settled",
    "SplitSecret",
    "Work",
    "standard_screen",
    "without_secrets",
]


MOST_PARTS: Final = 32
"""How many parts of one text may look like secrets. From there on the text is removed."""

_REDACTED = REDACTED.encode()
_MAX_ROUNDS: Final = 4
# Parts that only look like secrets are searched again from their second character on. If they are long and nested
# ("authorization: digest a=authorization: digest a=..."), that would take the square of the length of the text. After
# this many, whatever looks like a secret counts as one.
_PATIENCE: Final = 2
_PATIENCE_BYTES: Final = 1024
_GROUPS: Final = 5
_SHORT_BYTES: Final = 512


class Work:
    """A count of the searches that the texts of one event may still cost.

    If none are left, a text with a hit is removed as a whole. An event of thousands of texts must not hold up the
    thread that logs it.
    """

    __slots__ = ("left",)

    def __init__(self, searches: int) -> None:
        self.left = searches


class Screen:
    """The secrets of the table of patterns, and of the user's `own` patterns. Immutable; any thread.

    `find(text)` is the quick check of UTF-8 text. It returns None if no pattern matches anywhere. It may find something
    that `without_secrets` does not remove. Whatever it finds in one of several texts, it also finds in all of them
    joined with a newline.
    """

    __slots__ = ("_sets", "find")

    def __init__(self, own: Iterable[SecretPattern] = ()) -> None:
        own = tuple(own)
        table = _table()
        self._sets = (table, _PatternSet(own, re2.Options.Encoding.UTF8)) if own else (table,)
        self.find: Callable[[bytes], list[int] | None] = self._find if own else table.find

    def _find(self, text: bytes) -> list[int] | None:
        return next((found for patterns in self._sets if (found := patterns.find(text)) is not None), None)

    def without_secrets(self, text: str, most_parts: int = MOST_PARTS, work: Work | None = None) -> str:
        """Return the text with the secret part of every match replaced by `[REDACTED]`, or the same text if there is
        none.

        The result is searched again until nothing more is found. A text that does not settle is replaced as a whole. A
        secret is also found in the form that a reader would see, without the invisible characters in it.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
        """
        with FORKS_WAIT:
            return self._without_secrets(text, most_parts, work)

    def _without_secrets(self, text: str, most_parts: int, work: Work | None) -> str:
        data = text.encode()
        if not any(patterns.has_any(data) for patterns in self._sets):
            return text
        work = work or Work(_MAX_ROUNDS * 2 * (most_parts + _SEARCHES))
        for _ in range(_MAX_ROUNDS):
            if work.left <= 0:
                break
            found = self._secret_spans(data, most_parts, work)
            reading = Reading(data)
            if reading.data != data:
                found += reading.spans_in_original(self._secret_spans(reading.data, most_parts, work))
            left = _without(data, found)
            if left == data:
                return data.decode()
            data = left
        return REDACTED

    def _secret_spans(self, data: bytes, most_parts: int, work: Work) -> list[tuple[int, int]]:
        look = _Look(data, most_parts)
        for patterns in self._sets:
            patterns.look(look)
        work.left -= look.searches
        return look.found


class _Look:
    """One search of one text: the secret parts found so far, up to the limit of the search."""

    __slots__ = ("_end", "_most_parts", "data", "found", "searches")

    def __init__(self, data: bytes, most_parts: int) -> None:
        self.data = data
        self.found: list[tuple[int, int]] = []
        self.searches = 0
        self._most_parts = most_parts
        self._end = len(data)

    def search(self, pattern: SecretPattern, regex: re2._Regexp) -> None:
        """Add the parts that this pattern finds.

        Everything after the last part that may be examined is one secret part.
        """
        data, end = self.data, self._end
        groups = range(1, regex.groups + 1)
        position = doubted_bytes = 0
        patience_bytes = _PATIENCE * end + _PATIENCE_BYTES
        self.searches += 1
        while position <= end and (match := regex.search(data, position, end)) is not None:
            start, stop = _secret_span(match, groups)
            if not self._most_parts:
                self.found.append((start, len(data)))
                self._end = start
                return
            self._most_parts -= 1
            self.searches += 1
            is_too_much = doubted_bytes > patience_bytes
            span = (start, stop) if is_too_much else pattern.secret_in(data, match.start(), start, stop)
            if span is not None:
                self.found.append(span)
                position = max(span[1], position + 1)
            else:
                # Go on from the part, not from its end, since it may itself begin a match ("token: Bearer ...").
                position = max(start, position + 1)
                doubted_bytes += stop - start


class _PatternSet:
    """Patterns, each alone, all at once, and in a few groups.

    The states of a set are the products of those of its patterns. A hostile text makes new ones with every letter,
    which takes long; in groups there are few. An ordinary text is short, and reaches the same few states in both.
    """

    __slots__ = ("_encoding", "_groups", "_patterns", "find")

    def __init__(self, patterns: tuple[SecretPattern, ...], encoding: re2.Options.Encoding) -> None:
        self._patterns = patterns
        self._encoding = encoding
        signs = [(pattern.sign or pattern.regex).encode() for pattern in patterns]
        if encoding == re2.Options.Encoding.LATIN1:
            signs.append(HINT)
        self.find: Callable[[bytes], list[int] | None] = _set_of(signs, encoding, 64).Match
        longest_first = sorted(range(len(signs)), key=lambda index: -len(signs[index]))  # each in a group of its own
        dealt = [longest_first[first::_GROUPS] for first in range(min(_GROUPS, len(signs)))]
        self._groups = [(_set_of([signs[index] for index in group], encoding, 8), group) for group in dealt]

    def look(self, look: _Look) -> None:
        """Add the parts that these patterns find, in their order."""
        for index in self._found_in(look.data):
            if index < len(self._patterns):
                pattern = self._patterns[index]
                look.search(pattern, _compiled(pattern.regex.encode(), self._encoding))

    def has_any(self, data: bytes) -> bool:
        """Return True if `find` finds something."""
        if len(data) <= _SHORT_BYTES:
            return self.find(data) is not None
        return any(group.Match(data) is not None for group, _ in self._groups)

    def _found_in(self, data: bytes) -> list[int]:
        if len(data) <= _SHORT_BYTES:
            return sorted(self.find(data) or ())
        return sorted(indices[found] for group, indices in self._groups for found in group.Match(data) or ())


def _set_of(patterns: list[bytes], encoding: re2.Options.Encoding, most_mib: int) -> re2.Set:
    options = _options(encoding)
    options.max_mem = most_mib << 20  # an upper bound only; a set that needs more silently finds nothing
    every = re2.Set.SearchSet(options)
    for pattern in patterns:
        every.Add(pattern)
    every.Compile()
    return every


@cache
def _compiled(pattern: str | bytes, encoding: re2.Options.Encoding) -> re2._Regexp:
    """Compile a pattern on first use, and keep it. Most services never meet most secrets; all take 15 ms."""
    return re2.compile(pattern, _options(encoding))


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


def _without(data: bytes, spans: list[tuple[int, int]]) -> bytes:
    """Return the text with each span, or spans that overlap, replaced."""
    pieces: list[bytes] = []
    done = 0
    for start, stop in sorted(spans):
        if start >= done:
            pieces += (data[done:start], _REDACTED)
        done = max(done, stop)
    pieces.append(data[done:])
    return b"".join(pieces)


_SEARCHES: Final = 2 * len(PATTERNS)


@cache
def _table() -> _PatternSet:
    """Compile the table when a screen is first made, and not on import: it takes 40 ms, and `--help` needs none."""
    with FORKS_WAIT:
        return _PatternSet(PATTERNS, re2.Options.Encoding.LATIN1)


@cache
def standard_screen() -> Screen:
    """Return the screen of the table of patterns alone."""
    return Screen()


def without_secrets(text: str) -> str:
    """Return the text after `Screen.without_secrets` of the standard screen."""
    return standard_screen().without_secrets(text)


MARGIN_CHARS: Final = 512
"""How much of a text is looked at behind its cap: more than any pattern needs to tell a secret by its beginning."""

_MAX_SETTLING: Final = 4
_CHARS_A_PART: Final = 128  # so that larger caps allow more parts that look like secrets
_MOST_SEARCHES: Final = 1024


class Settled(NamedTuple):
    """A text in which nothing is left to remove or to cut.

    `marker` is that of the whole text if it was cut, and otherwise empty. `head` is the known beginning without
    secrets.
    """

    text: str
    removed: bool
    marker: str = ""
    head: str = ""


class EventTexts:
    """Clean the texts of one event. Only the cap and a margin of each are examined, however long it is."""

    __slots__ = ("_caps", "_chars_left", "_without_secrets", "_work")

    def __init__(self, screen: Screen, caps: Caps) -> None:
        self._without_secrets = screen.without_secrets
        self._caps = caps
        self._work = Work(_MOST_SEARCHES)
        self._chars_left = caps.attributes * (caps.text_chars + MARGIN_CHARS) + caps.line_bytes

    @property
    def are_too_many(self) -> bool:
        """Return True if more text was examined than all attributes at their caps and one line hold."""
        return self._chars_left < 0

    def text(self, text: str, chars: int) -> Settled:
        """Return at most `chars` characters, taking at most twice as many bytes in a line, since JSON writes six for
        some.
        """
        return self._settled(text, chars, lambda head, most, old, new: cut_text(head, most, old or new))

    def key(self, key: str) -> Settled:
        """Return the key of a mapping, within its cap."""
        return self._settled(key, self._caps.key_chars, lambda head, most, old, new: cut_key(head + old, most, new))

    def _settled(self, text: str, chars: int, cut: Callable[[str, int, str, str], str]) -> Settled:
        """Remove secrets before cutting, since a cut through a secret would leave a part that no pattern knows.

        A cut can make a match that did not exist before (the end of a text is the end of a word), so both are repeated
        until nothing changes. A text that does not settle is removed.
        """
        self._chars_left -= min(len(text), chars + MARGIN_CHARS)
        removed = False
        marker = whole_head = ""  # the marker of the first cut
        clean = None
        for _ in range(_MAX_SETTLING):
            window, rest = text[: chars + MARGIN_CHARS], text[chars + MARGIN_CHARS :]
            body, old = split_marker(window) if len(text) <= chars else (window, "")
            clean = head = body if body == clean else self._without_secrets_of(body, chars)
            if rest:
                head = _compiled(OPEN_AT_THE_END, re2.Options.Encoding.UTF8).sub(REDACTED, head)
            removed |= head != body
            most = _chars_within(head, chars, 2 * chars)
            new = marker_of(head, rest) if rest or (not old and len(head) > most) else ""
            if rest:
                head = _without_margin(head)
            if not marker and (new or len(head) + len(old) > most):
                marker, whole_head = new or old, head
            short = cut(head, most, old, new)
            if short == text:
                return Settled(text, removed, marker, whole_head)
            text = short
        return Settled(REDACTED, True, marker, whole_head)

    def _without_secrets_of(self, text: str, chars: int) -> str:
        return self._without_secrets(text, max(MOST_PARTS, chars // _CHARS_A_PART), self._work)


def _without_margin(head: str) -> str:
    """Return a beginning as far as its secrets are known. A secret that starts at its end may be cut in two."""
    # A secret at the end of the text was removed to its own end, wherever that is.
    return head if head.endswith(REDACTED) else beginning_of(head, max(0, len(head) - MARGIN_CHARS))


def _chars_within(text: str, chars: int, most_bytes: int) -> int:
    """Return how many characters, at most `chars`, a cut text may have so that JSON writes at most so many bytes."""
    if _json_bytes(text[:chars]) <= most_bytes:
        return chars
    shortest = bisect_left(range(chars), True, key=lambda count: _json_bytes(text[:count]) > most_bytes)
    return max(SHORTEST_CUT, shortest - 1)


def _json_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) - 2


_OPTION: Final = re2.compile(f"(?i){OPTION}")
_KEY_BEGIN: Final = re2.compile(KEY_BEGIN)
_KEY_END: Final = re2.compile(KEY_END)
_END_CHARS: Final = 256


class SplitSecret:
    """Examine the items of one list in order."""

    __slots__ = ("_in_key", "_is_after_option")

    def __init__(self) -> None:
        self._in_key = False
        self._is_after_option = False

    def takes(self, item: Any) -> bool:
        """Return True if the item continues a secret of the ones before it. Ask for each item, in order."""
        text = _ends_of(item) if type(item) is str else ""
        if self._in_key:
            self._in_key = _KEY_END.search(text) is None
            return True
        is_value = self._is_after_option and item != "" and type(item) is not bool and not text.startswith("-")
        self._is_after_option = _OPTION.fullmatch(text) is not None
        self._in_key = len(_KEY_BEGIN.findall(text)) > len(_KEY_END.findall(text))
        return is_value


def _ends_of(text: str) -> str:
    """Return the examined part of an item. A key may begin at its end, and end at its beginning."""
    return text if len(text) <= 2 * _END_CHARS else f"{text[:_END_CHARS]}\n{text[-_END_CHARS:]}"
