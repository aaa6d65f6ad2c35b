"""The lines of one turn before they are written: chained, numbered, and hashed into the tree of the ledger."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from otel_audit.journal.ledger.entries import ENTRY, NOTE, SignedNote, leaf_of, statement
from otel_audit.journal.ledger.epochs import EpochKey
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.ledger.identity import Identity
from otel_audit.journal.ledger.standing import Standing
from otel_audit.journal.line import FORMAT_VERSION, SEGMENT, Damage, Line, digest, system_body
from otel_audit.journal.line_file import hash_between, opened
from otel_audit.journal.locks import boot_id, host_id
from otel_audit.journal.reader import segment_lines_backwards
from otel_audit.signing.keys import VerifierKey
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.signing.tree import Edge

__all__ = ["SEGMENT_BYTES", "Author", "Draft", "Telling"]

Telling = tuple[str, Mapping[str, Any]]  # the kind of an entry, and its content

SEGMENT_BYTES: Final = 4 * 1024 * 1024  # a few thousand turns; a new process reads at most one segment


@dataclass(slots=True)
class Author:
    """How this process writes a ledger. The fields are the arguments of `Ledger`."""

    files: LedgerFiles
    log_name: str
    describe: Callable[[], Mapping[str, Any]]
    identity: Identity = field(default_factory=Identity)
    file_mode: int = 0o600
    segment_bytes: int = SEGMENT_BYTES
    say: Callable[[str, str], object] = lambda kind, text: None
    clock: Callable[[], int] = time.time_ns
    archived: VerifierKey | None = None  # the last key known to be in `ledger.keys`


class Draft:
    """The lines to be appended to a ledger that ends with `standing`, or to a new ledger if that is None.

    If `is_new`, they begin a segment, header first. Otherwise they continue the last segment.
    """

    def __init__(
        self, author: Author, directory_id: str, origin: str, standing: Standing | None = None, *, number: int = 1
    ) -> None:
        self.directory_id = directory_id
        self.origin = origin
        self.data = bytearray()
        self._author = author
        self._standing = standing
        self._now_ns = author.clock()
        if standing is None:
            self.number, self.is_new, self.begin = number, True, 0
            self._seq, self._prev_hash, self._edge = 0, "", Edge()
        else:
            note = standing.note.line
            self.is_new = bool(standing.sealed) or note.end.offset >= author.segment_bytes
            self.number = note.segment + self.is_new
            self.begin = 0 if self.is_new else note.end.offset
            self._seq, self._prev_hash, self._edge = note.seq, note.hash, standing.edge_behind()
        if self.is_new:
            self._add(system_body(SEGMENT, self._header(), self._now_ns))

    def tell(self, telling: Telling) -> None:
        """Add an entry."""
        kind, content = telling
        self._add(system_body(ENTRY, {"kind": str(kind), **content}, self._now_ns))

    def sign(self, key: EpochKey) -> Standing:
        """Add the note over all lines. Return the standing of the ledger after it."""
        edge = self._edge.copy()
        note = Note(str(Checkpoint(self.origin, edge.size, edge.root()))).signed(key.key, self.origin)
        note = self._author.identity.signed(note, self.origin)
        line = self._add(system_body(NOTE, {"text": bytes(note).decode()}, self._now_ns))
        said = statement(line)
        if not isinstance(said, SignedNote):
            raise ValueError(f"expected a note that can be read back, got {line!r}: is the log name valid in a note?")
        return Standing(self._log(), said, None, {}, edge, is_known=True)

    def _log(self) -> LedgerLog:
        former = self._standing.log.numbers if self._standing is not None else ()
        numbers = tuple(sorted({*former, self.number}))[-2:]
        return LedgerLog(self._author.files.directory, self.directory_id, numbers)

    def _add(self, body: bytes) -> Line:
        self._seq += 1
        chained = b',"prev_hash":"%b"' % self._prev_hash.encode() if self._prev_hash else b""
        content = b'%b,"stream_id":"%b","seq":%d%b}' % (body, self.directory_id.encode(), self._seq, chained)
        line = Line(content, self._seq, self.number, self.begin + len(self.data))
        self._prev_hash = digest(content)
        self._edge.append(leaf_of(content))
        self.data += content + b"\n"
        return line

    def _header(self) -> dict[str, Any]:
        standing = self._standing
        return {
            "format": FORMAT_VERSION,
            "stream_id": self.directory_id,
            "number": self.number,
            **self._author.describe(),
            "host_id": host_id(),
            "boot_id": boot_id(),
            "pid": os.getpid(),
            "directory_id": self.directory_id,
            "system_lines": self._edge.size,
            "size": self._edge.size,
            "edge": [base64.b64encode(node).decode() for node in self._edge.nodes],
            **({"damage": _damage(self._author.files, standing)} if standing is not None and standing.sealed else {}),
        }


def _damage(files: LedgerFiles, standing: Standing) -> dict[str, Any]:
    """Return the description of a sealed segment for the next header: the bytes of its last turn, which may be lost."""
    note = standing.note.line
    begin = _begin_of_turn(standing.log, note)
    with opened(files.segment(note.segment)) as descriptor:
        length, sha = hash_between(descriptor, begin, note.end.offset)
    return {"segment": note.segment, "offset": begin, "length": length, "sha256": sha, "reason": standing.sealed}


def _begin_of_turn(log: LedgerLog, note: Line) -> int:
    for each in segment_lines_backwards(log, note.segment, note.offset):
        if not isinstance(each, Damage) and isinstance(statement(each), SignedNote):
            return each.end.offset
    return 0
