"""The filters of a query: words for columns, a span of time, a text, and a page of the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Self

from otel_audit.errors import AuditError
from otel_audit.event_schema import Outcome
from otel_audit.stores.store import Sought, pattern_of

__all__ = ["UNDATED", "WORDS", "Clue", "Filters", "Place"]

_HIDDEN: Final = ("segment", "ledger", "note")  # lines of the journal itself that report no event

UNDATED: Final = "undated"
"""The day of lines without a time."""

_DAY_NS: Final = 86_400 * 10**9
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
"""What can be filtered by a word, and the columns of `events`, one of which must hold it."""

Clue = Sequence[Sequence[str]]
"""A line that a filter finds contains all texts of one of these groups, or an escape by number such as `\\u0061`."""

# Characters that JSON may escape, and half a surrogate, which no store accepts.
_REWRITTEN: Final = re.compile(r'["\\/\x00-\x1f\ud800-\udfff]')
# The same for a value that may not be a text. It is matched by its JSON, whose spaces and numbers may differ.
_REWRITTEN_JSON: Final = re.compile(r'["\\/\x00-\x1f\ud800-\udfff\s{}\[\]:,]')
_NUMBER: Final = re.compile(r"[-+.0-9eE]*")
_INTEGER: Final = re.compile(r"[0-9]{1,15}")  # written as it is read
# Letters whose other case differs between RE2 and DuckDB, such as I with a dot, or one outside ASCII.
_OTHER_CASES: Final = re.compile(r"[iI]|[^\x00-\x7f]")
_PATTERN_MAX: Final = 200  # characters of a text, and texts of a pattern, which has to fit into a URL
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
        """Return the place from its written form.

        Raises:
            AuditError: the text is not a place.
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
    """The filters of a query. An event must match all of them.

    `since_ns` is the first moment, and `until_ns` the one after the last. The answer continues after the place
    `before`. `words` has words for names of `WORDS`, of which one must match. A `*` in a word stands for any text.
    """

    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    since_ns: int | None = None
    until_ns: int | None = None
    text: str = ""
    before: Place | None = None
    undated: bool = False

    @classmethod
    def of_day(cls, day: str) -> Self:
        """Return the filters for a day, in UTC."""
        if day == UNDATED:
            return cls(undated=True)
        begin_ns = (datetime.fromisoformat(day) - datetime(1970, 1, 1)) // timedelta(microseconds=1) * 1000
        return cls(since_ns=begin_ns, until_ns=begin_ns + _DAY_NS)

    def asked(self) -> list[str]:
        """Return the filters as `name=word`, without the times."""
        asked = [f"{name}={word}" for name, given in self.words.items() for word in given]
        return [*asked, f"text={self.text}"] if self.text else asked

    def where(self, *, every: bool = False) -> tuple[str, list[object]]:
        """Return the condition over `events`, and the values of its parameters.

        With `every`, lines of the journal itself that report no event match too.
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
        """Return texts that every matching line contains, so that most other lines need not be parsed.

        Lines that contain them do not all match.
        """
        of_words = (_clue(name, given) for name, given in self.words.items() if given and name != "service")
        return [clue for clue in of_words if clue]

    def sought(self) -> Sought:
        """Return the query for a log store. Its result includes all matching lines."""
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
        """Return the last moment at which a matching event can be, or None if there is no limit."""
        ends = [] if self.until_ns is None else [self.until_ns - 1]
        return min([*ends, self.before.time_ns] if self.before is not None else ends, default=None)


def _written(text: str) -> str:
    """Return the form of a text in a line."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _pattern(text: str, anything: str | None = None) -> str:
    """Return the pattern of RE2 for a text, in which a `*` may stand for anything."""
    if anything is not None:
        return anything.join(map(_pattern, text.split("*")))
    return pattern_of(text)


def _clue(name: str, given: Sequence[str]) -> Clue:
    """Return the clue of one filter, or an empty one if there is none."""
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
    """Return the texts of a word that are the same in a line."""
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
