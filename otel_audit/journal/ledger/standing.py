"""Where a ledger stands: its last whole note, the edge of its tree there, and whether it may be continued.

What stands behind the last whole note is of a turn that did not end, and counts for nothing. A ledger is continued only
by whoever has the key that it announced, on the host that wrote it, where its lines give the root that it signed.
Otherwise somebody may have a second copy of it that goes on as well, or may have taken something away, and a size could
be signed twice: it is left as it is, and a new one begins that names it.
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
    "is_torn_beginning",
    "log_at_end",
    "standing_of",
]

_MAGIC: Final = b"otaudedg"
# So many turns that were killed before their sync may stand behind each other when power is lost.
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
    """The end of a ledger behind its last whole note.

    `before` is the line in front of the note. `edge` is that of the tree that the note signs, None where it could not
    be found out. `sealed`: why no line may follow in this segment, if so. `is_known`: the turn is known to have come to
    its end, so the names of its files are durable.
    """

    log: LedgerLog
    note: SignedNote
    before: Entry | Header | Line | None
    header: Mapping[str, Any]
    edge: Edge | None
    sealed: str = ""
    is_known: bool = False

    def edge_behind(self) -> Edge:
        """Return the edge of the tree with the note's own line.

        Raises:
            ProofInvalid: it is not known.
        """
        if self.edge is None:
            raise ProofInvalid(f"{self.log.directory_id}: expected the edge of its tree, got none")
        edge = Edge(self.edge.size, self.edge.nodes)
        edge.append(leaf_of(self.note.line))
        return edge

    @property
    def origin(self) -> str:
        """The name of the ledger."""
        return self.note.checkpoint.origin

    @property
    def segment(self) -> int:
        """The segment that the note is in."""
        return self.note.line.segment

    @property
    def is_here(self) -> bool:
        """Whether this host wrote the segment. Containers of one kernel are one host, whatever they are called."""
        boot = self.header.get("boot_id")
        return self.header.get("host_id") == host_id() or bool(boot and boot == boot_id())

    def key_in_force(self, keys: Sequence[EpochKey]) -> EpochKey | None:
        """Return the key that was announced last under the last whole note; None if it is not one of these."""
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
    """The file `ledger.edge`: what is known of the last note. It is a cache, and says when something was cut off.

    Written after the note is durable, so one that knows of a larger size than the ledger has shows that its end is
    gone. Also where it is noted that a segment is sealed, for whoever takes the next turn: of a failed sync the kernel
    tells only one process.
    """

    def __init__(self, files: LedgerFiles, mode: int, *, writes: bool = True) -> None:
        self._slots = Slots(files.edge, _MAGIC, mode, create=writes, writes=writes)

    def entries(self) -> list[dict[str, Any]]:
        """Return what the slots hold, as it was kept."""
        return [found for payload in self._slots.read() if payload and (found := _object(payload))]

    def largest(self, directory_id: str) -> dict[str, Any] | None:
        """Return what was kept of the latest note of a ledger."""
        own = [each for each in self.entries() if each["directory_id"] == directory_id]
        return max(own, key=lambda each: (int(each["size"]), bool(each["sealed"])), default=None)

    def hint(self) -> int:
        """Return the highest segment that is named; 1 where there is none."""
        return max((int(each["segment"]) for each in self.entries()), default=1)

    def keep(self, standing: Standing) -> None:
        """Keep what is known of the last note. Not synced: it is found out again where it is lost.

        Raises:
            OSError: it is not kept.
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
    """Return the edge of a tree as it was stored, in base64; None when that is none."""
    try:
        if not isinstance(size, int) or not isinstance(nodes, list):
            return None
        return Edge(size, [base64.b64decode(node, validate=True) for node in nodes])
    except (ProofInvalid, binascii.Error, TypeError, ValueError):
        return None


def log_at_end(files: LedgerFiles, hint: int) -> LedgerLog | None:
    """Return the ledger in force, with no more than its last two segments; None when there is none.

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
    """Return where a ledger stands; None when none of its last lines is a note. `cached`: as `EdgeFile.largest`.

    Of a turn that power tore there may be the note and not all of its entries. It is passed over as if the note were
    missing too. Lines that are whole, and do not give the root, are no such turn: then there is no `edge`.

    Raises:
        OSError: it cannot be read.
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
    """Return the edge of the tree of all lines before this one, from the header of its segment on.

    None where a line of the segment is missing, or its header does not say the edge.

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
    """Return True for a ledger of which there is nothing but what power, or a signal, left of its first turn.

    Raises:
        OSError: it cannot be read.
    """
    first = next(iter(segment_lines(log, log.numbers[0])), None)
    is_first = isinstance(first, Damage) or (first is not None and first.seq == 1)
    return len(log.numbers) == 1 and is_first and len(list(islice(_notes_backwards(log), 2))) < 2


def announcement_of(log: LedgerLog, vkey: VerifierKey) -> EpochRecord | None:
    """Return what shows that a key was announced under a note; None when the entry is not in the last segments.

    Raises:
        OSError: they cannot be read.
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
    """Yield each note, the last one first, and the line in front of it; None where that is no line, or another's."""
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
    """Return True if lines of the turn of this note are missing, or blocks of them were never written."""
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

    `vkey` is that of the key of the epoch which signed it; empty where the archive of the keys does not have it.
    `begun_anew`: why the ledger before this one could not be continued; empty if there was none. `exporters`: by name,
    how far the ledger was delivered; nowhere if there is none.
    """

    origin: str
    vkey: str
    size: int
    note_time_ns: int
    begun_anew: str = ""
    exporters: Mapping[str, Progress] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path) -> LedgerState | None:
        """Return it as it is now; None where there is no ledger, or no note of it can be read.

        Raises:
            OSError: a file of it cannot be read.
        """
        files = LedgerFiles(directory)
        log, note = files.latest(), last_note(files)
        if log is None or note is None:
            return None
        origin, size = note.checkpoint.origin, note.checkpoint.size
        exporters, _ = read_cursor(log.cursor)
        return cls(origin, _vkey_of(files, note), size, note.line.tail.time_ns, _reason_of(log), exporters)

    def waiting(self, exporter: str) -> int:
        """Return how many lines an exporter lacks of those up to the last note, which is a line too."""
        return max(0, self.size + 1 - self.exporters[exporter].position.seq)

    @property
    def is_stuck(self) -> bool:
        """Return True if an exporter cannot deliver it, or its destination refused a line."""
        return any(each.blocked or each.quarantine for each in self.exporters.values())

    def age_s(self, now_ns: int) -> float:
        """Return how old the last note is, in seconds; 0 where the clock was set back."""
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
