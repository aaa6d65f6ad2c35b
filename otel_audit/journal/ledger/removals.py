"""Read from the ledgers of a directory what was removed, and how far the lines of each stream are signed.

Retention depends on this: it removes no line that no entry covers, records each removal, and completes removals that a
crash has interrupted. The unsigned ledger of earlier versions is read as well, and its totals are added, since an older
version that runs beside this one continues it and does not read the signed one.

The signed ledger is read once, and afterwards only its new lines. An entry counts once a note follows it.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from otel_audit.journal.ledger import former
from otel_audit.journal.ledger.entries import NOTE, Entry, Kind, statement
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog, id_of
from otel_audit.journal.ledger.standing import edge_of
from otel_audit.journal.line import Damage, Line, Position, system_start
from otel_audit.journal.reader import segment_lines
from otel_audit.signing.tree import Edge
from otel_audit.threads import giving_way

__all__ = ["Removals", "Signed", "is_kept", "stream_of"]

_COVERING: Final = frozenset({Kind.HEAD, Kind.END, Kind.ADOPT, Kind.FOUND})
_WANTED: Final = tuple(b'"kind":"%b"' % kind.encode() for kind in (*_COVERING, Kind.RETAIN))
_NOTE: Final = system_start(NOTE)


@dataclass(slots=True)
class Signed:
    """How far a stream is signed: number and hash of the last signed line, and the root there if it is known.

    `is_over` is True if its end is in the ledger. `borders` holds hash and edge at the end of the segments that are not
    removed yet.
    """

    size: int = 0
    hash: str | None = None
    root: bytes | None = None
    is_over: bool = False
    borders: dict[int, tuple[str, Edge]] = field(default_factory=dict)

    def covers(self, last: Line, *, whole: bool) -> bool:
        """Return True if the lines up to this one are signed, and with `whole` if it is the last line of the stream.

        Return False if another line was signed under its number, or if signed lines after it are missing. Such a stream
        is kept as evidence.
        """
        if last.seq > self.size or (last.seq == self.size and last.hash != self.hash):
            return False
        if last.seq in self.borders and self.borders[last.seq][0] != last.hash:
            return False
        return not whole or (self.is_over and last.seq == self.size)


class Removals:
    """The removals in the ledgers of a directory, as of the last `refresh`. For one thread."""

    def __init__(self, directory: Path) -> None:
        self._files = LedgerFiles(directory)
        self._told: dict[str, list[Mapping[str, Any]]] = {}
        self._signed: dict[str, Signed] = {}
        self._last: list[Mapping[str, Any]] = []
        self._totals: Mapping[str, Any] = {}
        self.pruned: Mapping[str, Any] | None = None  # the last entry about removed lines of the ledger itself
        self._place = Position(0)  # after the last note
        self._former: dict[str, list[Mapping[str, Any]]] = {}
        self._former_last: Mapping[str, Any] | None = None
        self._former_size = 0

    def refresh(self) -> bool:
        """Read the entries written since the last call. Return True if something was removed.

        Raises:
            OSError: a ledger cannot be read.
        """
        before = self.last
        self._read_former()
        for number in self._files.segments():
            if number >= self._place.segment:
                self._read(number)
        return self.last != before

    @property
    def last(self) -> Sequence[Mapping[str, Any]]:
        """The removals that a crash may have interrupted: those of the last turn with removals, in each ledger."""
        return [*([] if self._former_last is None else [self._former_last]), *self._last]

    @property
    def signed_totals(self) -> Mapping[str, Any]:
        """The totals of all removals in the signed ledger."""
        return self._totals

    @property
    def totals(self) -> Sequence[Mapping[str, Any]]:
        """The totals of both ledgers. No removal is in both."""
        return [_totals(self._former_last), self.signed_totals]

    def told(self, stream_id: str) -> Sequence[Mapping[str, Any]]:
        """Return the removals of a stream."""
        return [*self._former.get(stream_id, ()), *self._told.get(stream_id, ())]

    def signed(self, stream_id: str) -> Signed:
        """Return how far a stream is signed."""
        return self._signed.get(stream_id) or Signed()

    def edge_before(self, stream_id: str, first: Line) -> Edge | None:
        """Return the edge of the tree of the lines before this one, or None if it is not known."""
        if first.seq == 1:
            return Edge()
        size, wanted = first.seq - 1, first.tail.prev_hash
        border = self.signed(stream_id).borders.get(size)
        if border is not None and border[0] == wanted:
            return border[1].copy()
        for each in reversed(self._told.get(stream_id, [])):
            if each.get("last_seq") == size and each.get("hash") == wanted:
                return edge_of(size, each.get("edge"))
        return None

    def _read_former(self) -> None:
        try:
            size = self._files.former.stat().st_size
        except FileNotFoundError:
            size = 0
        if size == self._former_size:
            return
        self._former, self._former_last = {}, None
        for entry in former.entries(self._files.directory):
            if entry.kind == former.RETAIN:
                self._former.setdefault(str(stream_of(entry.content)), []).append(entry.content)
                self._former_last = entry.content
        self._former_size = size

    def _read(self, number: int) -> None:
        try:
            directory_id = id_of(self._files.segment(number))
            if directory_id:
                log = LedgerLog(self._files.directory, directory_id, (number,))
                after = self._place if self._place.segment == number else None
                self._take_all(giving_way(segment_lines(log, number, after)))
        except FileNotFoundError:  # the segment of an interrupted turn, which another turn has removed
            return

    def _take_all(self, lines: Iterator[Line | Damage]) -> None:
        turn: list[Entry] = []
        is_torn = False
        for line in lines:
            if isinstance(line, Damage):
                is_torn = True
                continue
            # Parsing takes most of the time, and notes need not be parsed, since nobody checks their signatures here.
            if any(kind in line.content for kind in _WANTED):
                said = statement(line)
                if isinstance(said, Entry):
                    turn.append(said)
            elif line.content.startswith(_NOTE) and b"\0" not in line.content:
                if not is_torn:  # by a loss of power, before anything was removed
                    self._take(turn)
                turn, is_torn, self._place = [], False, line.end

    def _take(self, turn: Sequence[Entry]) -> None:
        removed: list[Mapping[str, Any]] = []
        for entry in turn:
            stream_id = stream_of(entry.content)
            if stream_id is None:
                continue
            if entry.kind in _COVERING:
                self._cover(stream_id, entry)
            elif entry.kind == Kind.RETAIN and stream_id == entry.line.tail.stream_id:
                self.pruned = entry.content
                self._totals = _totals(entry.content)
            elif entry.kind == Kind.RETAIN:
                self._totals = _totals(entry.content)
                self._told.setdefault(stream_id, []).append(entry.content)
                self._forget(stream_id, entry.content)
                removed.append(entry.content)
        self._last = removed or self._last

    def _cover(self, stream_id: str, entry: Entry) -> None:
        content = entry.content
        size, line_hash = content.get("size"), content.get("hash")
        if type(size) is not int or type(line_hash) is not str:
            return
        signed = self._signed.setdefault(stream_id, Signed())
        edge = edge_of(size, content.get("edge"))
        if edge is not None:
            signed.borders[size] = line_hash, edge
        if size >= signed.size:
            signed.size, signed.hash, signed.root = size, line_hash, _bytes(content.get("root"))
            signed.is_over = signed.is_over or entry.kind != Kind.HEAD

    def _forget(self, stream_id: str, content: Mapping[str, Any]) -> None:
        """Forget the signed lines that were removed."""
        last = content.get("last_seq")
        signed = self._signed.get(stream_id)
        if content.get("whole") is True:
            self._signed.pop(stream_id, None)
        elif signed is not None and type(last) is int:
            signed.borders = {size: border for size, border in signed.borders.items() if size > last}


def is_kept(directory: Path) -> bool:
    """Return True if the directory has a signed ledger.

    Raises:
        OSError: the directory cannot be listed.
    """
    files = LedgerFiles(directory)
    return files.segment(1).exists() or bool(files.segments())


def stream_of(content: Mapping[str, Any]) -> str | None:
    """Return the stream that an entry of either ledger is about, or None."""
    stream_id = content.get("stream", content.get("stream_id"))
    return stream_id if isinstance(stream_id, str) else None


def _totals(content: Mapping[str, Any] | None) -> Mapping[str, Any]:
    totals = None if content is None else content.get("totals")
    return totals if isinstance(totals, Mapping) else {}


def _bytes(text: object) -> bytes | None:
    try:
        return b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        return None
