"""What is asked of a trail: words that must stand in a column, a span of time, a text, and a page of the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from otel_audit.errors import AuditError

__all__ = ["WORDS", "Filters", "Place"]

_HIDDEN: Final = ("segment", "ledger", "note")  # lines of the journal itself that say nothing of what was done

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
}
"""What can be asked for by a word, and the columns of `events` of which one must hold it."""


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

    def asked(self) -> list[str]:
        """Return what is asked for as `name=word`, without the times."""
        asked = [f"{name}={word}" for name, given in self.words.items() for word in given]
        return [*asked, f"text={self.text}"] if self.text else asked

    def where(self) -> tuple[str, list[object]]:
        """Return the condition over `events`, and the values of its parameters."""
        conditions, values = [], list[object]()
        for name, given in self.words.items():
            if given:
                ways = [_matches(column, word, values) for word in given for column in WORDS[name]]
                conditions.append(f"({' OR '.join(ways)})")
        if not self.words.get("type"):
            conditions.append(f"(system IS NULL OR system NOT IN {_HIDDEN!r})")
        if self.since_ns is not None:
            conditions.append("time_ns >= ?")
            values.append(self.since_ns)
        if self.until_ns is not None:
            conditions.append("time_ns < ?")
            values.append(self.until_ns)
        if self.text:
            conditions.append("contains(lower(line), lower(?))")
            values.append(json.dumps(self.text, ensure_ascii=False)[1:-1])
        if self.before is not None:
            conditions.append("(time_ns, stream_id, seq) < (?, ?, ?)")
            values += self.before
        return " AND ".join(conditions) or "true", values


def _matches(column: str, word: str, values: list[object]) -> str:
    if "*" not in word:
        values.append(word)
        return f"{column} = ?"
    for char in ("\\", "%", "_"):
        word = word.replace(char, f"\\{char}")
    values.append(word.replace("*", "%"))
    return f"{column} LIKE ? ESCAPE '\\'"
