"""The export of a directory's ledger: which process may do it, and up to which line.

The process that holds the ledger's ship lock exports it. For an exporter the ledger is a stream with a cursor, with two
exceptions. It never ends: if a ledger cannot be continued, another one follows, and they are exported one after the
other. And no line is exported before a whole and durable note covers it, since lines after that note may be cut off
again, and a reader of them would hold proof of something that is not in the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_audit.journal.cursor import Cursor, Progress, read_cursor
from otel_audit.journal.files import sync_directory, sync_file
from otel_audit.journal.ledger.entries import SignedNote, statement
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog, id_of
from otel_audit.journal.ledger.standing import EdgeFile, standing_of
from otel_audit.journal.line import Line, Position
from otel_audit.journal.locks import FileLock
from otel_audit.journal.reader import segment_lines_backwards
from otel_audit.journal.shipment import Shipment

__all__ = ["DurableEnd", "LedgerShipment", "LedgerShipping"]


class DurableEnd:
    """Finds the last whole and durable note of a ledger, up to which it may be exported. Any thread may call it.

    `ledger.edge` is written once a turn is durable. If it does not name the last note, the turn was killed before that,
    or the file is lost. Then the note is made durable here, while nobody can take a turn.
    """

    def __init__(self, log: LedgerLog, *, file_mode: int = 0o600) -> None:
        self._log = log
        self._files = LedgerFiles(log.directory)
        self._file_mode = file_mode
        self._last = log.numbers[0]
        self._seen: tuple[int, ...] = ()
        self._end = Position(self._last)

    def __call__(self) -> Position:
        """Return the position after that note, or the beginning of the ledger if there is none.

        Raises:
            OSError: the ledger cannot be read or made durable.
        """
        while self._is_own(self._last + 1):
            self._last += 1
        try:
            status = os.stat(self._files.segment(self._last))
        except FileNotFoundError:
            return self._end
        seen = (self._last, status.st_ino, status.st_size, status.st_mtime_ns)
        if seen != self._seen:
            note = self._last_note()
            if note is not None and note.line.seq != self._end.seq:
                if not self._is_durable(note):
                    return self._end
                self._end = note.line.end
            self._seen = seen
        return self._end

    def _is_own(self, number: int) -> bool:
        path = self._files.segment(number)
        return path.exists() and id_of(path) in (self._log.directory_id, "")

    def _last_note(self) -> SignedNote | None:
        for number in range(self._last, max(self._log.numbers[0], self._end.segment) - 1, -1):
            with suppress(FileNotFoundError):
                for each in segment_lines_backwards(self._log, number):
                    if isinstance(each, Line) and isinstance(note := statement(each), SignedNote):
                        return note
        return None

    def _is_durable(self, note: SignedNote) -> bool:
        size = note.checkpoint.size
        kept = self._kept()
        if kept is not None and int(kept["size"]) >= size:
            return int(kept["size"]) > size or not kept["sealed"]
        lock = FileLock.acquire(self._files.lock, mode=self._file_mode)
        if lock is None:
            return False  # the turn that wrote it is still going on
        with lock:
            numbers = tuple(each for each in (note.line.segment - 1, note.line.segment) if each in self._log.segments())
            standing = standing_of(LedgerLog(self._log.directory, self._log.directory_id, numbers), kept)
            if standing is None or standing.edge is None or standing.note.line.seq != note.line.seq:
                return False  # the turn is incomplete, after a loss of power
            sync_file(self._files.segment(note.line.segment))
            sync_directory(self._files.directory)
            return True

    def _kept(self) -> dict[str, Any] | None:
        try:
            edge = EdgeFile(self._files, self._file_mode, writes=False)
        except FileNotFoundError:
            return None
        try:
            return edge.largest(self._log.directory_id)
        finally:
            edge.close()


@dataclass(slots=True)
class LedgerShipment(Shipment):
    """The right to export a ledger to the `exporters` with these names."""

    exporters: Collection[str] = ()

    @property
    def ended(self) -> bool:
        """False, since the writers' lock is free between two turns, which does not mean that the ledger has ended."""
        return False

    def is_for(self, exporter: str) -> bool:
        """See `Shipment`."""
        return exporter in self.exporters

    def is_followed(self) -> bool:
        """Return True if the ledger is fully delivered and another one has replaced it.

        Raises:
            OSError: the ledgers cannot be read.
        """
        if LedgerFiles(self.files.directory).directory_id() == self.stream_id:
            return False
        end = self.durable()
        return end is None or all(self.cursor.progress(each).position.seq >= end.seq for each in self.exporters)


class LedgerShipping:
    """Takes the right to export the ledger of a directory to the `exporters` with these names."""

    def __init__(self, directory: Path, exporters: Collection[str], *, file_mode: int = 0o600) -> None:
        self._files = LedgerFiles(directory)
        self._exporters = tuple(exporters)
        self._file_mode = file_mode

    def take(self) -> LedgerShipment | None:
        """Take the right for the oldest ledger that is not fully delivered. Return None while another process has it.

        Raises:
            OSError: the ledger cannot be read, or its cursor cannot be created.
        """
        if not self._exporters or not self._files.segments():
            return None
        lock = FileLock.acquire(self._files.ship_lock, mode=self._file_mode)
        if lock is None:
            return None
        try:
            log = self._next()
            if log is None:
                lock.release()
                return None
            end = DurableEnd(log, file_mode=self._file_mode)
            cursor = Cursor(log.cursor, mode=self._file_mode)
        except BaseException:
            lock.release()
            raise
        return LedgerShipment(log, cursor, lock, None, end, file_mode=self._file_mode, exporters=self._exporters)

    def restart(self, exporter: str) -> bool:
        """Send every ledger to this exporter again, from its first line. Return False if another process exports it.

        Raises:
            OSError: a cursor cannot be written.
        """
        lock = FileLock.acquire(self._files.ship_lock, mode=self._file_mode)
        if lock is None:
            return False
        with lock:
            for log in self._files.logs():
                cursor = Cursor(log.cursor, mode=self._file_mode)
                cursor.restart(exporter)
                cursor.close()
        return True

    def _next(self) -> LedgerLog | None:
        logs = self._files.logs()
        behind = (log for log in logs[:-1] if self._is_behind(log))
        return next(behind, logs[-1] if logs else None)

    def _is_behind(self, log: LedgerLog) -> bool:
        """Return True if an exporter still lacks lines of this ledger, which was not continued."""
        progress, _ = read_cursor(log.cursor, listed=False)
        end = DurableEnd(log, file_mode=self._file_mode)()
        return any(progress.get(name, Progress()).position.seq < end.seq for name in self._exporters)
