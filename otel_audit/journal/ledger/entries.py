"""What the lines of a ledger say: entries, and the signed notes behind them.

An entry is a line of the journal's own whose body is `{"system":"ledger", ...}` and that stands in a ledger's tree: an
application can log an event of the type `audit.ledger`, so nothing is found by its type alone. A note is such a line
with the text of a C2SP checkpoint over every line before it. Whatever is not exactly one of them is neither, and is
given as the plain line that it is.

Every line of a ledger is a leaf of its tree, the headers and the notes as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from otel_audit.errors import NoteMalformed
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.line import SEGMENT, Damage, Line
from otel_audit.journal.reader import segment_lines, segment_lines_backwards
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.signing.tree import leaf_hash

__all__ = [
    "ENTRY",
    "NOTE",
    "Entry",
    "Header",
    "Kind",
    "SignedNote",
    "Statement",
    "last_note",
    "leaf_of",
    "origin_of",
    "statement",
    "statements",
    "statements_backwards",
]

ENTRY: Final = "ledger"
NOTE: Final = "note"


class Kind(StrEnum):
    """The kinds of entries that this version writes. Another version may write more."""

    BEGIN = "begin"
    OPEN = "open"
    HEAD = "head"
    END = "end"
    ADOPT = "adopt"
    RETAIN = "retain"
    KEY = "key"
    SIGNATURE = "signature"
    FOUND = "found"


@dataclass(frozen=True, slots=True)
class Entry:
    """What somebody has said in the ledger. `content` is without the kind."""

    kind: str
    content: Mapping[str, Any]
    line: Line


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A note, and what it says: that the ledger has these many lines before it, and this root.

    Nothing is known of its signatures until `note.verified` has looked at them.
    """

    note: Note
    checkpoint: Checkpoint
    line: Line


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a segment."""

    content: Mapping[str, Any]
    line: Line


Statement = Entry | SignedNote | Header | Line | Damage


def origin_of(log_name: str, directory_id: str) -> str:
    """Return the name of a ledger, by which its notes and keys are known."""
    return f"{log_name}/{directory_id}"


def leaf_of(line: bytes | Line) -> bytes:
    """Return the hash of a line's leaf in the tree of its stream or ledger."""
    return leaf_hash(bytes.fromhex(line.hash if isinstance(line, Line) else Line(line, 0).hash))


def statements(log: LedgerLog) -> Iterator[Statement]:
    """Yield what a ledger says, in its order, and what stands between that is no line of it. In constant memory.

    Lines behind the last note are given too: they count for nothing, since the turn that wrote them did not end. What
    stands behind the last newline is left alone.

    Raises:
        OSError: it cannot be read.
    """
    for number in log.segments():
        for each in segment_lines(log, number):
            yield each if isinstance(each, Damage) else statement(each)


def statements_backwards(log: LedgerLog) -> Iterator[Statement]:
    """Yield the same from the last to the first.

    Raises:
        OSError: it cannot be read.
    """
    for number in reversed(log.segments()):
        for each in segment_lines_backwards(log, number):
            yield each if isinstance(each, Damage) else statement(each)


def last_note(files: LedgerFiles) -> SignedNote | None:
    """Return the last note of the ledger in force; None when there is none.

    Raises:
        OSError: it cannot be read.
    """
    log = files.latest()
    told = () if log is None else statements_backwards(log)
    return next((each for each in told if isinstance(each, SignedNote)), None)


def statement(line: Line) -> Entry | SignedNote | Header | Line:
    """Return what a line of a ledger says; the line itself when that is nothing that we know."""
    for system in (ENTRY, NOTE, SEGMENT):
        if line.content.startswith(b'{"system":"%b","event_type":"audit.%b",' % (system.encode(), system.encode())):
            content = _content(line.content, system)
            if content is None:
                return line
            if system == ENTRY:
                return _entry(content, line)
            return _note(content, line) if system == NOTE else Header(content, line)
    return line


def _entry(content: Mapping[str, Any], line: Line) -> Entry | Line:
    kind = content.get("kind")
    if not isinstance(kind, str):
        return line
    return Entry(kind, {name: value for name, value in content.items() if name != "kind"}, line)


def _note(content: Mapping[str, Any], line: Line) -> SignedNote | Line:
    text = content.get("text")
    if not isinstance(text, str) or len(content) != 1:
        return line
    try:
        note = Note.parse(text.encode())
        checkpoint = Checkpoint.parse(note.text)
    except (NoteMalformed, UnicodeEncodeError):
        return line
    tail = line.tail
    is_of_this = checkpoint.origin.endswith(f"/{tail.stream_id}") and checkpoint.size == tail.seq - 1
    return SignedNote(note, checkpoint, line) if is_of_this else line


def _content(line: bytes, system: str) -> Mapping[str, Any] | None:
    """Return the object under the key of its kind; None unless it is one, and every key stands there once."""
    try:
        stored = json.loads(line, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError):
        return None
    content = stored.get(system) if isinstance(stored, dict) else None
    return content if isinstance(content, dict) else None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object. A key that stands there twice means one thing to us and another to the next reader."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found
