"""What is asked of a trail: words that must stand in a column, a span of time, a text, and a page of the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Self

from otel_audit.errors import AuditError
from otel_audit.event_schema import Outcome
from otel_audit.stores.store import Sought

__all__ = ["WORDS", "Clue", "Filters", "Place"]

_HIDDEN: Final = ("segment", "ledger", "note")  # lines of the journal itself that say nothing of what was done

_TAGS: Final = "tags"  # a list, one of whose words must match

WORDS: Final[Mapping[str, Sequence[str]]] = {
    "actor": ("actor_id", "actor_name"),
    "on_behalf_of": ("on_behalf_of",),
    "tool": ("tool",),
    "path": ("path",),
    "target": ("target", "target_type || '/' || target"),
    "outcome": ("outcome", "result"),
    "type": ("event_type",),
    "service": ("service",),
    "trace": ("trace_id",),
    "request": ("request_id",),
    "tag": (_TAGS,),
}
"""What can be asked for by a word, and the columns of `events` of which one must hold it."""

Clue = Sequence[Sequence[str]]
"""A line that a filter finds contains all texts of one of these groups, or an escape by number such as `\\u0061`."""

# What JSON may write in another way than it is read, and half a surrogate, which no store takes.
_REWRITTEN: Final = re.compile(r'["\\/\x00-\x1f\ud800-\udfff]')
# The same where a value may be no text: then it is matched by its JSON, whose spaces and numbers are written anew.
_REWRITTEN_JSON: Final = re.compile(r'["\\/\x00-\x1f\ud800-\udfff\s{}\[\]:,]')
_NUMBER: Final = re.compile(r"[-+.0-9eE]*")
_INTEGER: Final = re.compile(r"[0-9]{1,15}")  # written as it is read
# Letters whose other cases RE2 and DuckDB do not agree about: I has one with a dot, and others have one outside ASCII.
_OTHER_CASES: Final = re.compile(r"[iI]|[^\x00-\x7f]")
_PATTERN_MAX: Final = 200  # characters of a text, and texts of a pattern: it has to fit into a URL
_PATTERNS_MAX: Final = 20
_TEXTS_MAX: Final = 3  # of one word, the longest
_WORDS_OF: Final[Mapping[Outcome, Sequence[str]]] = {
    Outcome.SUCCESS: ("success", "allow"),
    Outcome.DENIED: ("denied", "deny"),
    Outcome.ERROR: ("error", "mcp_error"),
}


class Place(NamedTuple):
    """The place of an event in the answer, which is sorted by time, stream and number, the newest first."""

    time_ns: int
    stream_id: str
    seq: int

    def __str__(self) -> str:
        return f"{self.time_ns}:{self.stream_id}:{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the place that is written so.

        Raises:
            AuditError: it is none.
        """
        time_ns, _, rest = text.partition(":")
        stream_id, _, seq = rest.rpartition(":")
        try:
            return cls(int(time_ns), stream_id, int(seq))
        except ValueError as error:
            raise AuditError(
                f"expected a place as `otel-audit query` prints it, TIME_NS:STREAM:NUMBER, got {text[:100]!r}"
            ) from error


@dataclass(frozen=True, slots=True)
class Filters:
    """An event is found if each filter that is given finds it.

    `since_ns` is the first moment, `until_ns` the one behind the last. `before` is the place behind which to go on.
    `words`: for each name of `WORDS` the words of which one must match. A `*` in one stands for any text.
    """

    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    since_ns: int | None = None
    until_ns: int | None = None
    text: str = ""
    before: Place | None = None
    undated: bool = False

    def asked(self) -> list[str]:
        """Return what is asked for as `name=word`, without the times."""
        asked = [f"{name}={word}" for name, given in self.words.items() for word in given]
        return [*asked, f"text={self.text}"] if self.text else asked

    def where(self, *, every: bool = False) -> tuple[str, list[object]]:
        """Return the condition over `events`, and the values of its parameters.

        With `every`, lines of the journal itself that say nothing of what was done are found too.
        """
        conditions, values = [], list[object]()
        for name, given in self.words.items():
            if given:
                ways = [_matches(column, word, values) for word in given for column in WORDS[name]]
                conditions.append(f"({' OR '.join(ways)})")
        if not (every or self.words.get("type")):
            conditions.append(f"(system IS NULL OR system NOT IN {_HIDDEN!r})")
        if self.since_ns is not None:
            conditions.append("time_ns >= ?")
            values.append(self.since_ns)
        if self.until_ns is not None:
            conditions.append("time_ns < ?")
            values.append(self.until_ns)
        if self.undated:
            conditions.append("time_ns IS NULL")
        if self.text:
            conditions.append("contains(lower(line), lower(?))")
            values.append(_written(self.text))
        if self.before is not None:
            conditions.append("(time_ns, stream_id, seq) < (?, ?, ?)")
            values += self.before
        return " AND ".join(conditions) or "true", values

    def within(self, since_ns: int | None, until_ns: int | None) -> Self:
        """Return the filters for a part of their time."""
        begins = [each for each in (self.since_ns, since_ns) if each is not None]
        ends = [each for each in (self.until_ns, until_ns) if each is not None]
        return replace(self, since_ns=max(begins, default=None), until_ns=min(ends, default=None))

    def clues(self) -> Sequence[Clue]:
        """Return what the lines that are found contain, as far as that can be said of their bytes.

        The lines that meet all clues are more than those that are found, and are told apart without parsing any.
        """
        of_words = (_clue(name, given) for name, given in self.words.items() if given and name != "service")
        return [clue for clue in of_words if clue]

    def sought(self) -> Sought:
        """Return what a log store is asked for: lines among which are all that are found."""
        patterns = [
            "|".join([*(_pattern(max(texts, key=len)[:_PATTERN_MAX]) for texts in clue), _pattern("\\u")])
            for clue in self.clues()
            if len(clue) <= _PATTERNS_MAX
        ]
        if text := max(_OTHER_CASES.split(_written(self.text)), key=len)[:_PATTERN_MAX]:
            patterns.append(f"(?i:{_pattern(text)})")
        services = "|".join(_pattern(word, "(?s:.*)") for word in self.words.get("service", ()))
        if len(services) > _PATTERN_MAX * _PATTERNS_MAX:
            services = ""
        last_ns = self.last_ns()
        return Sought(patterns, services, self.since_ns, None if last_ns is None else last_ns + 1)

    def last_ns(self) -> int | None:
        """Return the last moment at which an event can be that is found; None if there is none."""
        ends = [] if self.until_ns is None else [self.until_ns - 1]
        return min([*ends, self.before.time_ns] if self.before is not None else ends, default=None)


def _written(text: str) -> str:
    """Return a text as a line writes it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _pattern(text: str, anything: str | None = None) -> str:
    """Return the pattern of RE2 for a text, in which a `*` may stand for anything."""
    if anything is not None:
        return anything.join(map(_pattern, text.split("*")))
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _clue(name: str, given: Sequence[str]) -> Clue:
    """Return the clue of one filter, or an empty one if nothing can be said."""
    groups: list[Sequence[str]] = []
    for word in given:
        groups.append(
            _texts_of(word, may_be_json="*" in word or word[:1] in "[{" or (name == "target" and "/" in word))
        )
        if name == "outcome":
            pattern = ".*".join(map(re.escape, word.split("*")))
            meant = [each for each in Outcome if re.fullmatch(pattern, each)]
            if Outcome.UNKNOWN in meant:
                return ()
            groups += [[text] for each in meant for text in _WORDS_OF.get(each, (each.value,))]
    return groups if all(groups) else ()


def _texts_of(word: str, *, may_be_json: bool) -> Sequence[str]:
    """Return texts that stand in the line as they do in the word."""
    if not may_be_json:
        if _NUMBER.fullmatch(word) and not _INTEGER.fullmatch(word):
            return ()
        texts = _REWRITTEN.split(word)
    else:
        texts = [
            text for part in word.split("*") for text in _REWRITTEN_JSON.split(part) if not _NUMBER.fullmatch(text)
        ]
    return sorted(filter(None, set(texts)), key=len)[-_TEXTS_MAX:]


def _matches(column: str, word: str, values: list[object]) -> str:
    if column == _TAGS:
        matches = _matches("tag", word, values)
        return f"len(list_filter(json_extract_string({column}, '$[*]'), lambda tag: {matches})) > 0"
    if "*" not in word:
        values.append(word)
        return f"{column} = ?"
    for char in ("\\", "%", "_"):
        word = word.replace(char, f"\\{char}")
    values.append(word.replace("*", "%"))
    return f"{column} LIKE ? ESCAPE '\\'"
