"""Parse the lines of a ledger: entries, signed notes and segment headers.

An entry is a system line with the body `{"system":"ledger", ...}`. Its event type alone proves nothing, because an
application can log an event of the type `audit.ledger`. A note is a system line with the text of a C2SP checkpoint over
every line before it. Any other line is returned unchanged.

Every line of a ledger is a leaf of its tree, including the headers and the notes.
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
    """The kinds of entries that this version writes. A later version may write more."""

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
    """An entry of the ledger. `content` does not include the kind."""

    kind: str
    content: Mapping[str, Any]
    line: Line


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A note and its checkpoint, which holds the number of lines before the note and the root of their tree.

    Its signatures are not verified yet; `note.verified` does so.
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
    """Return the name of a ledger, as it stands in its notes and keys."""
    return f"{log_name}/{directory_id}"


def leaf_of(line: bytes | Line) -> bytes:
    """Return the hash of a line's leaf in the tree of its stream or ledger."""
    return leaf_hash(bytes.fromhex(line.hash if isinstance(line, Line) else Line(line, 0).hash))


def statements(log: LedgerLog) -> Iterator[Statement]:
    """Yield the lines of a ledger in order, and the damage between them. Memory use is constant.

    Lines after the last note are included, although they have no effect, because their turn was not completed. Bytes
    after the last newline are left out.

    Raises:
        OSError: the ledger cannot be read.
    """
    for number in log.segments():
        for each in segment_lines(log, number):
            yield each if isinstance(each, Damage) else statement(each)


def statements_backwards(log: LedgerLog) -> Iterator[Statement]:
    """Yield the same in reverse order.

    Raises:
        OSError: the ledger cannot be read.
    """
    for number in reversed(log.segments()):
        for each in segment_lines_backwards(log, number):
            yield each if isinstance(each, Damage) else statement(each)


def last_note(files: LedgerFiles) -> SignedNote | None:
    """Return the last note of the ledger in force, or None if there is none.

    Raises:
        OSError: the ledger cannot be read.
    """
    log = files.latest()
    told = () if log is None else statements_backwards(log)
    return next((each for each in told if isinstance(each, SignedNote)), None)


def statement(line: Line) -> Entry | SignedNote | Header | Line:
    """Return the parsed line, or the line itself if it is neither an entry, a note nor a header."""
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
    """Return the object under the key of its kind, or None if there is none or if a key occurs twice."""
    try:
        stored = json.loads(line, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError):
        return None
    content = stored.get(system) if isinstance(stored, dict) else None
    return content if isinstance(content, dict) else None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object, and refuse a key that occurs twice, since readers differ in which value they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
