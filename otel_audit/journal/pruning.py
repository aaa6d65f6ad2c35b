"""Remove the oldest segments of the signed ledger, once nothing in the directory depends on them.

A segment may be removed when it is older than the retention period, every exporter of the ledger has all of it, and
each stream that it names was removed as a whole, according to a later entry. Then only the totals of all removals and
the ledger's first entry have to be carried forward. A stream that still exists keeps every segment from its `open`
entry on. So does a stream that vanished without an entry, since that is evidence.

Only the holder of the ledger's ship lock does this. First a `retain` entry with the ledger's own id is signed and
durable. It holds the number of the last removed line, and its hash and edge, so that chain and tree continue after it.
If a crash follows, the next process completes the removal. `ledger.keys` is never removed.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import JournalUnreadable
from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.files import segments_in, sync_directory
from otel_audit.journal.ledger.entries import Entry, Header, Kind, SignedNote, statement
from otel_audit.journal.ledger.epochs import EpochKeys, named_key
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.ledger.removals import Removals
from otel_audit.journal.line import Damage, Line
from otel_audit.journal.locks import FileLock
from otel_audit.journal.reader import segment_lines
from otel_audit.journal.shipment import Shipment
from otel_audit.threads import giving_way

__all__ = ["LedgerPruning"]

_MOST_A_TURN: Final = 16
_KEPT: Final = 2  # the last segments, in which a turn looks for the last note and the last key
_EDGE_BYTES: Final = 32
_STREAM: Final = re.compile(rb'"stream":"([0-9a-f-]{36})"')


@dataclass(frozen=True, slots=True)
class _Segment:
    """The content of a finished segment: the streams and keys that it names, its header and its last line."""

    number: int
    streams: frozenset[str]
    keys: frozenset[str]
    begin: Mapping[str, Any] | None  # the content of the ledger's first entry
    header: Header
    last: Line


class LedgerPruning:
    """Removes segments of a directory's ledger. For one thread, in the process that delivers the directory.

    `exporters` are the names of this process's exporters of the ledger.
    """

    def __init__(self, directory: Path, exporters: Collection[str], *, file_mode: int = 0o600) -> None:
        self._files = LedgerFiles(directory)
        self._exporters = frozenset(exporters)
        self._file_mode = file_mode
        self._read: dict[int, _Segment | None] = {}  # None for a segment that must be kept as evidence

    def prune(
        self,
        ledger: Ledger,
        removals: Removals,
        old: Collection[int],
        shipment: Shipment | None,
        guard: AbstractContextManager[object],
    ) -> Sequence[int]:
        """Remove the oldest segments that may be removed, and return their numbers. Only those in `old` are old enough.

        `shipment` is the caller's right to export the ledger, if it has that right. It is not released while `guard` is
        entered.

        Raises:
            LedgerBusy: others had the turn for too long; nothing was removed.
            OSError: a file cannot be read or removed; the next call continues.
        """
        log = self._files.latest()
        if log is None:
            return ()
        lock = None if shipment is not None else FileLock.acquire(self._files.ship_lock, mode=self._file_mode)
        if lock is None and shipment is None:
            return ()
        try:
            removals.refresh()
            self._finish(_told_before(log, removals))
            doomed = self._doomed(log, removals, old)
            if not doomed:
                return ()
            with ledger.turn() as turn, guard:
                if turn.directory_id != log.directory_id:
                    return ()  # a new ledger has begun
                if shipment is not None and (shipment.released or not shipment.ship_lock.is_in_place()):
                    return ()
                removals.refresh()
                turn.write([(Kind.RETAIN, self._told(log, removals, doomed))])
                removals.refresh()
                self._finish(_told_before(log, removals))
            return [each.number for each in doomed]
        finally:
            if lock is not None:
                lock.release()

    def _finish(self, told: Mapping[str, Any] | None) -> None:
        """Remove the files that an entry lists. A file that somebody has restored since is another one, and stays."""
        files = told.get("files") if told is not None else None
        for each in files if isinstance(files, list) else ():
            with suppress(KeyError, TypeError, ValueError):
                path = self._files.segment(int(each["segment"]))
                if _identity(path) == (each["inode"], each["changed_ns"]):
                    path.unlink()
                    sync_directory(path.parent)  # so that a loss of power leaves no hole between the remaining ones

    def _doomed(self, log: LedgerLog, removals: Removals, old: Collection[int]) -> Sequence[_Segment]:
        numbers = log.segments()
        exported_to = self._exported_to(log)
        here: Collection[str] | None = None
        archived: Collection[str] | None = None
        doomed: list[_Segment] = []
        for number in numbers[:-_KEPT][:_MOST_A_TURN]:
            if number not in old or (exported_to is not None and number >= exported_to):
                break
            segment = self._content(log, number)
            if segment is None or not _goes_on(doomed, segment, _told_before(log, removals)):
                break
            here = segments_in(log.directory) if here is None else here
            if any(each in here or not _is_gone(removals, each) for each in segment.streams - {log.directory_id}):
                break
            archived = self._archived() if archived is None else archived
            if not segment.keys <= set(archived):
                break  # somebody may have kept a note, from which no key would lead to the present ones
            doomed.append(segment)
        for number in list(self._read):
            if number not in numbers:
                del self._read[number]
        return doomed

    def _exported_to(self, log: LedgerLog) -> int | None:
        """Return the segment that the slowest exporter has reached, or None if the ledger is not exported."""
        progress, _ = read_cursor(log.cursor, listed=False)
        reached = [progress.get(name, Progress()).position.segment for name in {*progress, *self._exporters}]
        return min(reached, default=None)

    def _archived(self) -> Collection[str]:
        try:
            return {str(record.vkey) for record in EpochKeys.read(self._files.directory)}
        except JournalUnreadable:
            return ()

    def _content(self, log: LedgerLog, number: int) -> _Segment | None:
        if number not in self._read:
            self._read[number] = _read(log, number)
        return self._read[number]

    def _told(self, log: LedgerLog, removals: Removals, doomed: Sequence[_Segment]) -> Mapping[str, Any]:
        """Return the entry that removes everything up to the last line of these segments."""
        following = self._content_of_header(log, doomed[-1])
        before = _told_before(log, removals) or {}
        files = [each.number for each in doomed]
        return {
            "stream": log.directory_id,
            "segment": files[-1],
            "first_seq": 1,
            "last_seq": doomed[-1].last.seq,
            "prev_hash": None,
            "hash": doomed[-1].last.hash,
            "edge": following["edge"],
            "reason": "age",
            "whole": False,
            "files": [_told_of(self._files.segment(number), number) for number in files],
            "begin": next((each.begin for each in doomed if each.begin is not None), before.get("begin")),
            "totals": removals.signed_totals,
        }

    def _content_of_header(self, log: LedgerLog, last: _Segment) -> Mapping[str, Any]:
        first = next(iter(segment_lines(log, last.number + 1)))
        header = statement(first) if isinstance(first, Line) else None
        edge = header.content.get("edge") if isinstance(header, Header) else None
        if (
            not isinstance(header, Header)
            or header.line.tail.prev_hash != last.last.hash
            or header.content.get("size") != last.last.seq
            or not isinstance(edge, list)
            or not all(isinstance(each, str) and len(b64decode(each)) == _EDGE_BYTES for each in edge)
        ):
            raise OSError(
                f"{log.segment(last.number + 1)}: expected a header that continues line {last.last.seq}, got "
                "another line; nothing is removed; `otel-audit verify` shows what was changed"
            )
        return header.content


def _told_before(log: LedgerLog, removals: Removals) -> Mapping[str, Any] | None:
    """Return the last entry about removed lines of this ledger, or None."""
    told = removals.pruned
    return told if told is not None and told.get("stream") == log.directory_id else None


def _goes_on(doomed: Sequence[_Segment], segment: _Segment, before: Mapping[str, Any] | None) -> bool:
    """Return True if a segment follows the one before it or the removed lines, or begins the ledger."""
    first = segment.header.line
    if doomed:
        return first.tail.prev_hash == doomed[-1].last.hash
    return first.seq == 1 or (before is not None and first.seq <= int(before["last_seq"]) + 1)


def _is_gone(removals: Removals, stream_id: str) -> bool:
    return any(each.get("whole") is True for each in removals.told(stream_id))


def _read(log: LedgerLog, number: int) -> _Segment | None:
    """Return the content of a segment, or None if it has damage or unknown lines, or ends without a note."""
    header: Header | None = None
    last: Line | None = None
    begin: Mapping[str, Any] | None = None
    streams: set[str] = set()
    keys: set[str] = set()
    said: object = None
    for line in giving_way(segment_lines(log, number)):
        if isinstance(line, Damage):
            return None
        said, last = statement(line), line
        if isinstance(said, Header) and header is None:
            header = said
        elif isinstance(said, Entry):
            begin = said.content if said.kind == Kind.BEGIN else begin
            keys.update(str(key) for key in [named_key(said)[1]] if key is not None)
            streams.update(named.decode() for named in _STREAM.findall(line.content))
        elif not isinstance(said, SignedNote):
            return None
    if header is None or last is None or not isinstance(said, SignedNote):
        return None
    return _Segment(number, frozenset(streams), frozenset(keys), begin, header, last)


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        status = os.stat(path, follow_symlinks=False)
        return status.st_ino, status.st_ctime_ns
    return None


def _told_of(path: Path, number: int) -> Mapping[str, int]:
    status = os.stat(path, follow_symlinks=False)
    return {"segment": number, "inode": status.st_ino, "changed_ns": status.st_ctime_ns}
