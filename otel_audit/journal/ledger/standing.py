"""Find where a ledger ends, and whether it may be continued: its last whole note, and the edge of its tree there.

Lines after the last whole note belong to a turn that was not completed, and have no effect. A ledger may be continued
only on the host that wrote it, with the key that it announced, and only if its lines give the root that was signed.
Otherwise there may be a second copy that is continued as well, or lines may have been removed, and two different trees
of one size could be signed. Such a ledger is left alone, and a new one begins that names it.

`LedgerState` is the same for `status` and `doctor`: it takes no lock, and reads only the ends of a ledger.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import NoteMalformed, ProofInvalid, SignatureInvalid
from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.ledger.entries import (
    Entry,
    Header,
    Kind,
    SignedNote,
    Statement,
    last_note,
    leaf_of,
    statement,
    statements,
)
from otel_audit.journal.ledger.epochs import EpochKey, EpochRecord, last_leaf_path, named_key
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog, Slots, id_of
from otel_audit.journal.line import Damage, Line
from otel_audit.journal.line_file import pieces_backwards
from otel_audit.journal.locks import boot_id, host_id
from otel_audit.journal.reader import segment_lines, segment_lines_backwards
from otel_audit.signing.keys import VerifierKey
from otel_audit.signing.tree import Edge

__all__ = [
    "EdgeFile",
    "LedgerState",
    "Reason",
    "Standing",
    "announcement_of",
    "edge_before",
    "edge_of",
    "is_torn_beginning",
    "log_at_end",
    "standing_of",
]

_MAGIC: Final = b"otaudedg"
# When power is lost, this many turns in a row may be there that were killed before their sync.
_UNSYNCED_MAX: Final = 3


class Reason(StrEnum):
    """Why a ledger is not continued."""

    KEY_MISSING = "its key file is missing"
    KEY_TORN = "its key file holds no key that can be read"
    KEY_UNKNOWN = "its key file holds no key that it announced"
    OTHER_HOST = "it was last written on another host"
    CUT = "it ends before a note that was signed"
    ROOT = "its lines do not give the root that its last note signed"
    NO_NOTE = "no note of it can be read"


@dataclass(frozen=True, slots=True)
class Standing:
    """The end of a ledger after its last whole note.

    `before` is the line before the note. `edge` is the edge of the tree that the note signs, or None if it could not be
    computed. `sealed` says why no line may follow in this segment, if none may. `is_known` is True if the turn is known
    to be complete, so that the names of its files are durable.
    """

    log: LedgerLog
    note: SignedNote
    before: Entry | Header | Line | None
    header: Mapping[str, Any]
    edge: Edge | None
    sealed: str = ""
    is_known: bool = False

    def edge_behind(self) -> Edge:
        """Return the edge of the tree that includes the note's own line.

        Raises:
            ProofInvalid: the edge is not known.
        """
        if self.edge is None:
            raise ProofInvalid(f"{self.log.directory_id}: expected the edge of its tree, got none")
        edge = self.edge.copy()
        edge.append(leaf_of(self.note.line))
        return edge

    @property
    def origin(self) -> str:
        """The name of the ledger."""
        return self.note.checkpoint.origin

    @property
    def segment(self) -> int:
        """The number of the segment that holds the note."""
        return self.note.line.segment

    @property
    def is_here(self) -> bool:
        """True if this host wrote the segment. Containers on one kernel are one host, whatever their names."""
        boot = self.header.get("boot_id")
        return self.header.get("host_id") == host_id() or bool(boot and boot == boot_id())

    def key_in_force(self, keys: Sequence[EpochKey]) -> EpochKey | None:
        """Return the key that was announced last under the last whole note, or None if it is not one of `keys`."""
        own = [key for key in keys if key.directory_id == self.log.directory_id]
        if isinstance(self.before, Entry) and self.before.kind == Kind.KEY:
            named = named_key(self.before)
            return next((key for key in own if named == (key.number, str(key.key.verifier(self.origin)))), None)
        for key in own:
            try:
                self.note.note.verified([key.key.verifier(self.origin)])
            except SignatureInvalid:
                continue
            return key
        return None


class EdgeFile:
    """The file `ledger.edge`: facts about the last note. It is a cache, and shows whether a ledger was cut off.

    It is written once the note is durable. If it holds a larger size than the ledger has, the ledger's end is missing.
    It also records that a segment is sealed, for the process that takes the next turn, since the kernel reports a
    failed sync to one process only.
    """

    def __init__(self, files: LedgerFiles, mode: int, *, writes: bool = True) -> None:
        self._slots = Slots(files.edge, _MAGIC, mode, create=writes, writes=writes)

    def entries(self) -> list[dict[str, Any]]:
        """Return the content of the slots."""
        return [found for payload in self._slots.read() if payload and (found := _object(payload))]

    def largest(self, directory_id: str) -> dict[str, Any] | None:
        """Return what is stored about the latest note of a ledger."""
        own = [each for each in self.entries() if each["directory_id"] == directory_id]
        return max(own, key=lambda each: (int(each["size"]), bool(each["sealed"])), default=None)

    def hint(self) -> int:
        """Return the highest segment number in the file, or 1 if there is none."""
        return max((int(each["segment"]) for each in self.entries()), default=1)

    def keep(self, standing: Standing) -> None:
        """Store what is known about the last note. This is not synced, since it can be computed again.

        Raises:
            OSError: it is not stored.
        """
        edge = standing.edge
        stored = {
            "directory_id": standing.log.directory_id,
            "size": standing.note.checkpoint.size,
            "segment": standing.segment,
            "sealed": standing.sealed,
            "nodes": None if edge is None else [base64.b64encode(node).decode() for node in edge.nodes],
        }
        known = [None if payload is None else _object(payload) for payload in self._slots.read()]
        current = [-1 if each is None else _rank(each, standing.log.directory_id) for each in known]
        self._slots.write(0 if current[0] <= current[1] else 1, json.dumps(stored).encode())

    def close(self) -> None:
        """Close the file."""
        self._slots.close()


def _rank(stored: Mapping[str, Any], directory_id: str) -> int:
    return int(stored["size"]) if stored["directory_id"] == directory_id else -1


def _object(payload: bytes) -> dict[str, Any] | None:
    try:
        stored = json.loads(payload)
        int(stored["size"]), int(stored["segment"]), str(stored["directory_id"]), stored["nodes"], stored["sealed"]
    except (ValueError, KeyError, TypeError):
        return None
    return dict(stored)


def edge_of(size: object, nodes: object) -> Edge | None:
    """Return the edge of a tree of this size from its stored nodes, a list in base64, or None if they are invalid."""
    try:
        if not isinstance(size, int) or not isinstance(nodes, list):
            return None
        return Edge(size, [base64.b64decode(node, validate=True) for node in nodes])
    except (ProofInvalid, binascii.Error, TypeError, ValueError):
        return None


def log_at_end(files: LedgerFiles, hint: int) -> LedgerLog | None:
    """Return the ledger in force with at most its last two segments, or None if there is none.

    `hint` is the number of a segment that may be the last one, so that the directory need not be listed.
    """
    numbers = files.segments() if not files.segment(hint).exists() else []
    last = numbers[-1] if numbers else hint
    if not numbers and not files.segment(last).exists():
        return None
    while files.segment(last + 1).exists():
        last += 1
    directory_id = ""
    while last and not (directory_id := id_of(files.segment(last))) and files.segment(last - 1).exists():
        last -= 1
    if not directory_id:
        return None
    before = last - 1
    is_own = files.segment(before).exists() and id_of(files.segment(before)) == directory_id
    return LedgerLog(files.directory, directory_id, (before, last) if is_own else (last,))


def standing_of(log: LedgerLog, cached: Mapping[str, Any] | None) -> Standing | None:
    """Return the standing of a ledger, or None if there is no note among its last lines. For `cached` see `EdgeFile`.

    After a loss of power, a turn may have its note but not all of its entries. Such a turn is skipped, as if its note
    were missing too. If all lines are whole but do not give the root, `edge` is None.

    Raises:
        OSError: the ledger cannot be read.
    """
    last: Standing | None = None
    for note, before in islice(_notes_backwards(log), _UNSYNCED_MAX):
        header = _header(log, note.line.segment)
        standing = Standing(log, note, before, header.content if header is not None else {}, None)
        edge = None
        if cached is not None and cached["size"] == note.checkpoint.size:
            edge = edge_of(cached["size"], cached["nodes"])
            standing = replace(standing, sealed=str(cached["sealed"]), is_known=not cached["sealed"])
        if edge is None or edge.root() != note.checkpoint.root:
            edge = edge_before(log, note.line)
        if edge is not None and edge.root() == note.checkpoint.root:
            return replace(standing, edge=edge)
        last = last or standing
        was_durable = cached is not None and cached["size"] >= note.checkpoint.size
        if was_durable or not _is_torn(log, note.line):
            break
    return last


def edge_before(log: LedgerLog, line: Line) -> Edge | None:
    """Return the edge of the tree of all lines before this one, computed from the header of its segment.

    Return None if a line of the segment is missing, or if the header does not hold an edge.

    Raises:
        OSError: the segment cannot be read.
    """
    edge: Edge | None = None
    for each in segment_lines(log, line.segment):
        if isinstance(each, Damage):
            return None
        if edge is None:
            header = statement(each)
            if not isinstance(header, Header):
                return None
            edge = edge_of(header.content.get("size"), header.content.get("edge"))
        if edge is None or each.seq != edge.size + 1:
            return None
        if each.offset == line.offset:
            return edge
        edge.append(leaf_of(each))
    return None


def is_torn_beginning(log: LedgerLog) -> bool:
    """Return True if the ledger holds only the remains of its first turn, which a signal or a loss of power ended.

    Raises:
        OSError: the ledger cannot be read.
    """
    first = next(iter(segment_lines(log, log.numbers[0])), None)
    is_first = isinstance(first, Damage) or (first is not None and first.seq == 1)
    return len(log.numbers) == 1 and is_first and len(list(islice(_notes_backwards(log), 2))) < 2


def announcement_of(log: LedgerLog, vkey: VerifierKey) -> EpochRecord | None:
    """Return the proof that a key was announced under a note, or None if its entry is not in the last segments.

    Raises:
        OSError: the segments cannot be read.
    """
    note: SignedNote | None = None
    for each in _backwards(log):
        if isinstance(each, SignedNote):
            note = each
        elif isinstance(each, Entry) and note is not None and named_key(each)[1] == str(vkey):
            edge = edge_before(log, each.line)
            if edge is None or note.checkpoint.size != each.line.seq:
                return None
            path = last_leaf_path(edge.nodes)
            return EpochRecord(int(str(named_key(each)[0])), vkey, each.line.content, path, note.note)
    return None


def _notes_backwards(log: LedgerLog) -> Iterator[tuple[SignedNote, Entry | Header | Line | None]]:
    """Yield each note, the last one first, with the line before it, or None if that is missing or is a note."""
    note: SignedNote | None = None
    for each in _backwards(log):
        if note is not None:
            is_before = not isinstance(each, Damage | SignedNote) and _line(each).seq == note.line.seq - 1
            yield note, each if is_before and not isinstance(each, Damage | SignedNote) else None
            note = None
        if isinstance(each, SignedNote):
            note = each
    if note is not None:
        yield note, None


def _is_torn(log: LedgerLog, note: Line) -> bool:
    """Return True if lines of this note's turn are missing, or if blocks of them were never written."""
    seq = note.seq
    for each in segment_lines_backwards(log, note.segment, note.offset):
        seq -= 1
        if isinstance(each, Damage) or each.seq != seq or b"\0" in each.content:
            return True
        if isinstance(statement(each), SignedNote | Header):
            return False
    return True


def _backwards(log: LedgerLog) -> Iterator[Statement]:
    for number in reversed(log.numbers):
        for each in segment_lines_backwards(log, number):
            yield each if isinstance(each, Damage) else statement(each)


def _line(each: Entry | Header | Line) -> Line:
    return each if isinstance(each, Line) else each.line


def _header(log: LedgerLog, number: int) -> Header | None:
    first: Iterable[Line | Damage] = segment_lines(log, number)
    for each in first:
        found = None if isinstance(each, Damage) else statement(each)
        return found if isinstance(found, Header) else None
    return None


@dataclass(frozen=True, slots=True)
class LedgerState:
    """What the last note of the ledger in force says, and when it was written, in nanoseconds since 1970.

    `vkey` is the public key of the epoch that signed it, or empty if the archive of keys lacks it. `begun_anew` says
    why the previous ledger could not be continued, or is empty if there was none. `exporters` holds the progress of
    each exporter of the ledger by name.
    """

    origin: str
    vkey: str
    size: int
    note_time_ns: int
    begun_anew: str = ""
    exporters: Mapping[str, Progress] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path) -> LedgerState | None:
        """Return the present state, or None if there is no ledger or none of its notes can be read.

        Raises:
            OSError: a file of the ledger cannot be read.
        """
        files = LedgerFiles(directory)
        log, note = files.latest(), last_note(files)
        if log is None or note is None:
            return None
        origin, size = note.checkpoint.origin, note.checkpoint.size
        exporters, _ = read_cursor(log.cursor)
        return cls(origin, _vkey_of(files, note), size, note.line.tail.time_ns, _reason_of(log), exporters)

    def waiting(self, exporter: str) -> int:
        """Return how many lines, up to and including the last note, an exporter still lacks."""
        return max(0, self.size + 1 - self.exporters[exporter].position.seq)

    @property
    def is_stuck(self) -> bool:
        """Return True if an exporter cannot deliver the ledger, or if its destination refused a line."""
        return any(each.blocked or each.quarantine for each in self.exporters.values())

    def age_s(self, now_ns: int) -> float:
        """Return the age of the last note in seconds, or 0 if the clock was set back."""
        return max(0.0, (now_ns - self.note_time_ns) / 1e9)


def _vkey_of(files: LedgerFiles, note: SignedNote) -> str:
    signers = {(each.name, each.key_id) for each in note.note.signatures}
    with suppress(FileNotFoundError):
        for piece in pieces_backwards(files.keys):
            with suppress(NoteMalformed, ValueError):
                vkey = EpochRecord.parse(piece.content or b"").vkey
                if (vkey.name, vkey.key_id) in signers:
                    return str(vkey)
    return ""


def _reason_of(log: LedgerLog) -> str:
    begin = next((each for each in statements(log) if isinstance(each, Entry)), None)
    former = begin.content.get("former") if begin is not None and begin.kind == Kind.BEGIN else None
    return str(former.get("reason")) if isinstance(former, dict) else ""
