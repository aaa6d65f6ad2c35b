"""The result of a verification: findings by class, the state of each stream, and the verdict that follows from them.

There are three classes. A *finding* is something that no honest writer causes. *Unproven* is something that cannot be
shown to be whole or broken. A *notice* is an ordinary fact that a reader should know. Any finding makes the verdict
`broken`. `proven` needs a pin (a key, an earlier note or a second copy, supplied by the verifier), no finding and
nothing unproven. `empty` means that neither a stream nor a ledger was there. Everything else is `consistent`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

__all__ = ["Class", "Finding", "Findings", "LedgerReport", "Report", "StreamReport", "Verdict", "report_schema"]

# More of one kind in one stream add nothing, and a file of foreign bytes would fill the memory with them.
_MOST_OF_A_KIND: Final = 100


class Class(StrEnum):
    """The class of a fact."""

    FINDING = "finding"
    UNPROVEN = "unproven"
    NOTICE = "notice"


class Verdict(StrEnum):
    """The result of the whole verification."""

    PROVEN = "proven"
    CONSISTENT = "consistent"
    BROKEN = "broken"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the lines from `seq` to `last_seq`. `stream_id` is empty if it is about the whole directory."""

    weight: Class
    kind: str
    stream_id: str
    seq: int | None
    message: str
    last_seq: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as `verify --json` has it."""
        return {
            "class": str(self.weight),
            "kind": self.kind,
            "stream_id": self.stream_id,
            "seq": self.seq,
            "last_seq": self.last_seq if self.last_seq is not None else self.seq,
            "message": self.message,
        }


class Findings:
    """The facts about one stream or the directory, in the order in which they were found.

    A hundred of each kind are kept, and the rest is counted.
    """

    __slots__ = ("_counts", "_stream_id", "found")

    def __init__(self, stream_id: str = "") -> None:
        self._stream_id = stream_id
        self._counts: dict[tuple[Class, str], int] = {}
        self.found: list[Finding] = []

    def add(self, weight: Class, kind: str, seq: int | None, message: str, last_seq: int | None = None) -> None:
        """Add a fact."""
        count = self._counts[weight, kind] = self._counts.get((weight, kind), 0) + 1
        if count <= _MOST_OF_A_KIND:
            self.found.append(Finding(weight, kind, self._stream_id, seq, message, last_seq))

    def broken(self, kind: str, seq: int | None, message: str, last_seq: int | None = None) -> None:
        """Add a finding."""
        self.add(Class.FINDING, kind, seq, message, last_seq)

    def unproven(self, kind: str, seq: int | None, message: str, last_seq: int | None = None) -> None:
        """Add something that cannot be shown to be whole."""
        self.add(Class.UNPROVEN, kind, seq, message, last_seq)

    def notice(self, kind: str, seq: int | None, message: str, last_seq: int | None = None) -> None:
        """Add an ordinary fact."""
        self.add(Class.NOTICE, kind, seq, message, last_seq)

    @property
    def has_broken(self) -> bool:
        """True if one of them is a finding."""
        return any(weight is Class.FINDING for weight, _ in self._counts)

    @property
    def all(self) -> list[Finding]:
        """The facts that were kept, and one for each kind that had more."""
        more = [
            Finding(weight, kind, self._stream_id, None, f"and {count - _MOST_OF_A_KIND} more of this kind")
            for (weight, kind), count in self._counts.items()
            if count > _MOST_OF_A_KIND
        ]
        return [*self.found, *more]


@dataclass(slots=True)
class StreamReport:
    """How far one stream is verified.

    `first_seq` and `last_seq` are the numbers of the first and the last line. Up to line `chain_to` each line has the
    hash of the line before it. Up to `signed_to` the ledger's signed roots cover the stream and agree. Up to
    `anchored_to` they do so under a note that a pin of the verifier vouches for. 0 means no line.
    """

    stream_id: str
    service: str = ""
    state: str = "unknown"
    first_seq: int = 0
    last_seq: int = 0
    lines: int = 0
    chain_to: int = 0
    signed_to: int = 0
    anchored_to: int = 0
    ended: bool = False
    findings: list[Finding] = field(default_factory=list)

    def lines_to(self, seq: int) -> int:
        """Return the number of lines up to this one, without those before the first line that is there."""
        return max(0, seq - self.first_seq + 1) if self.lines else 0

    def as_json(self) -> dict[str, Any]:
        """Return it as `verify --json` has it, without its findings."""
        return {
            "stream_id": self.stream_id,
            "service": self.service,
            "state": self.state,
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
            "lines": self.lines,
            "chain_to": self.chain_to,
            "signed_to": self.signed_to,
            "anchored_to": self.anchored_to,
            "ended": self.ended,
        }


@dataclass(slots=True)
class LedgerReport:
    """The ledger of one directory: its name, its size, and the keys that signed its notes.

    `note` is the text of its last note. A copy that is kept elsewhere can be given to `--known` later.
    """

    origin: str = ""
    size: int = 0
    root: str = ""
    note_time_ns: int = 0
    notes: int = 0
    epochs: int = 0
    vkey: str = ""
    identity: str = ""
    identity_time_ns: int = 0
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as `verify --json` has it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Report:
    """The outcome of one verification."""

    source: str
    time_ns: int
    pins: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    streams: list[StreamReport] = field(default_factory=list)
    ledgers: list[LedgerReport] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from the findings."""
        weights = {each.weight for each in self.all_findings}
        if Class.FINDING in weights:
            return Verdict.BROKEN
        if not (self.streams or self.ledgers):
            return Verdict.EMPTY
        return Verdict.PROVEN if self.pins and Class.UNPROVEN not in weights else Verdict.CONSISTENT

    @property
    def exit_code(self) -> int:
        """1 without a trail, for a broken one, and for one that is not proven although there was a pin. Otherwise 0."""
        return 0 if self.verdict is Verdict.PROVEN or (self.verdict is Verdict.CONSISTENT and not self.pins) else 1

    @property
    def signed_lines(self) -> int:
        """The number of lines that signed heads cover."""
        return sum(stream.lines_to(stream.signed_to) for stream in self.streams)

    @property
    def vouched_lines(self) -> int:
        """The number of signed lines that the pins vouch for."""
        return sum(stream.lines_to(stream.anchored_to) for stream in self.streams)

    @property
    def all_findings(self) -> list[Finding]:
        """The findings about the whole trail, then those of each stream."""
        return [*self.findings, *(each for stream in self.streams for each in stream.findings)]

    def as_json(self) -> Mapping[str, Any]:
        """Return it as `verify --json` prints it."""
        return {
            "verdict": str(self.verdict),
            "source": self.source,
            "time_ns": self.time_ns,
            "pins": list(self.pins),
            "findings": [each.as_json() for each in self.all_findings],
            "streams": [stream.as_json() for stream in self.streams],
            "ledger": self.ledgers[0].as_json() if self.ledgers else None,
            "ledgers": [ledger.as_json() for ledger in self.ledgers],
        }


def report_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `verify --json` prints. Source: JSON Schema 2020-12."""
    text, number, time = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "integer"}
    place = {"type": ["integer", "null"], "minimum": 0}
    finding = {
        "class": {"enum": [str(each) for each in Class], "description": "How much the fact weighs."},
        "kind": {**text, "description": "What it is, in one word, such as `altered` or `missing`."},
        "stream_id": {**text, "description": "The stream or ledger; empty where it is about the whole."},
        "seq": {**place, "description": "The first line that it is about."},
        "last_seq": {**place, "description": "The last one."},
        "message": {**text, "description": "The fact in a sentence."},
    }
    stream = {
        "stream_id": text,
        "service": text,
        "state": {**text, "description": "live, ended, removed, missing, not there yet or unknown."},
        "first_seq": number,
        "last_seq": number,
        "lines": number,
        "chain_to": {**number, "description": "Up to this line numbers and hashes are as they must be."},
        "signed_to": {**number, "description": "Up to this line a signed root covers the stream, and agrees."},
        "anchored_to": {**number, "description": "The same, under a note that a pin vouches for."},
        "ended": {"type": "boolean", "description": "Its end is in the ledger: its writer was not killed."},
    }
    ledger = {
        "origin": {**text, "description": "Its name, in every note."},
        "size": {**number, "description": "Lines under its last note."},
        "root": {**text, "description": "Root of their tree, in hex."},
        "note_time_ns": time,
        "notes": number,
        "epochs": number,
        "vkey": {**text, "description": "Public key of the epoch in force."},
        "identity": {**text, "description": "Public key of the identity; empty without one."},
        "identity_time_ns": time,
        "note": {**text, "description": "The last note, whole: keep it for `--known`."},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "VerifyReport",
        **_object(
            {
                "verdict": {"enum": [str(each) for each in Verdict]},
                "source": text,
                "time_ns": time,
                "pins": {"type": "array", "items": text},
                "findings": {"type": "array", "items": _object(finding)},
                "streams": {"type": "array", "items": _object(stream)},
                "ledger": {"anyOf": [{"$ref": "#/$defs/Ledger"}, {"type": "null"}]},
                "ledgers": {"type": "array", "items": {"$ref": "#/$defs/Ledger"}},
            }
        ),
        "$defs": {"Ledger": _object(ledger)},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
