"""The unsigned ledger of earlier versions: `ledger.jsonl`, with a `retain` entry for each segment that was removed.

It is hash-chained, and an entry is durable before the removal, but it is not signed. Retention writes it in a directory
without a signed ledger. In other directories it is only read; if it still grows, an older version is at work.

Each line is one JSON object. The content stands under the name of the kind, and the ledger's own keys come last.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from otel_audit.journal.files import open_segment, sync_directory, write_whole
from otel_audit.journal.ledger.files import FULL, LedgerFiles, Reserve
from otel_audit.journal.line import digest
from otel_audit.journal.line_file import pieces, pieces_backwards, whole_bytes
from otel_audit.journal.locks import FileLock

__all__ = ["RETAIN", "Entry", "Ledger", "entries", "has_room", "is_begun", "latest"]

RETAIN: Final = "retain"
_FORMAT: Final = 1
_NAME: Final = "ledger.jsonl"
_LOCK_NAME: Final = "ledger.lock"
_RESERVE_NAME: Final = "ledger.reserve"
_LOCK_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. `number` counts from 1, and `prev_hash` is the hash of the stored line before it."""

    kind: str
    content: Mapping[str, Any]
    time_ns: int
    number: int
    prev_hash: str | None

    @classmethod
    def of(cls, line: bytes) -> Entry | None:
        """Return the entry in a line without its newline, or None if the line is not an entry."""
        try:
            stored = json.loads(line)
            kind, content = stored["kind"], stored[stored["kind"]]
            if not isinstance(content, dict):
                return None
            return cls(kind, content, int(stored["time_ns"]), int(stored["number"]), stored.get("prev_hash"))
        except (ValueError, KeyError, TypeError):
            return None

    def line(self) -> bytes:
        """Return the stored form, without its newline."""
        own = {"time_ns": self.time_ns, "number": self.number, "prev_hash": self.prev_hash}
        stored = {"format": _FORMAT, "kind": self.kind, self.kind: self.content}
        return json.dumps({**stored, **own}, separators=(",", ":")).encode()


def entries(directory: Path) -> Iterator[Entry]:
    """Yield every entry of a directory's ledger, oldest first. Torn and damaged lines are skipped.

    Raises:
        OSError: the ledger cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        for piece in pieces(directory / _NAME):
            if piece.content is not None and (entry := Entry.of(piece.content)) is not None:
                yield entry


def latest(directory: Path, kind: str) -> Entry | None:
    """Return the last entry of this kind, or None if there is none.

    Raises:
        OSError: the ledger cannot be read.
    """
    return next((entry for entry in _backwards(directory / _NAME) if entry is not None and entry.kind == kind), None)


def is_begun(directory: Path) -> bool:
    """Return True if the directory has a ledger."""
    return (directory / _NAME).exists()


def has_room(directory: Path) -> bool:
    """Return True if the ledger's reserve is whole, so that an entry can be written on a full disk."""
    return Reserve(directory / _RESERVE_NAME).is_whole()


class Ledger:
    """The right to write a directory's ledger, from `locked` until `release`. For one thread."""

    def __init__(self, directory: Path, lock: FileLock, mode: int) -> None:
        self._directory = directory
        self._path = directory / _NAME
        self._reserve = Reserve(directory / _RESERVE_NAME, mode)
        self._lock = lock
        self._mode = mode

    @classmethod
    def locked(cls, directory: Path, *, mode: int = 0o600, wait_s: float = 1.0) -> Ledger | None:
        """Take the right to write, or return None if another process had it for the whole time.

        Raises:
            OSError: the lock file can be neither opened nor created.
        """
        deadline = time.monotonic() + wait_s
        while True:
            lock = FileLock.acquire(directory / _LOCK_NAME, mode=mode)
            if lock is not None:
                return cls(directory, lock, mode)
            if time.monotonic() >= deadline:
                return None
            time.sleep(_LOCK_POLL_S)

    def append(self, kind: str, content: Mapping[str, Any], time_ns: int) -> Entry:
        """Return once the entry is durable, since only then may the removal begin.

        An incomplete entry that a crash left is cut off, since its removal did not begin. On a full disk the entry uses
        the space that `keep_room` has kept for it.

        Raises:
            OSError: the entry is not known to be durable, so nothing may be removed.
        """
        is_new = not self._path.exists()
        descriptor = open_segment(self._path, self._mode)
        try:
            end = whole_bytes(self._path)
            os.ftruncate(descriptor, end)
            entry = self._next(kind, content, time_ns)
            self._write(descriptor, entry.line() + b"\n", end)
        finally:
            os.close(descriptor)
        if is_new:
            sync_directory(self._directory)
        return entry

    def keep_room(self) -> None:
        """Keep a reserve for entries in case the disk is full later, unless it is full already."""
        self._reserve.keep()

    def release(self, *, remove: bool = True) -> None:
        """Let others write. With `remove`, remove the lock file too, unless a signed ledger uses it."""
        self._lock.release(remove=remove and not LedgerFiles(self._directory).key.exists())

    def abandon(self) -> None:
        """Leave the lock to the parent, in a forked child."""
        self._lock.abandon()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def _next(self, kind: str, content: Mapping[str, Any], time_ns: int) -> Entry:
        last = next((piece.content for piece in pieces_backwards(self._path) if piece.content is not None), None)
        number = 1
        for passed, entry in enumerate(_backwards(self._path)):
            number = passed + 2
            if entry is not None:
                number = entry.number + passed + 1  # damaged lines were entries too
                break
        return Entry(kind, content, time_ns, number, None if last is None else digest(last))

    def _write(self, descriptor: int, line: bytes, end: int) -> None:
        while True:
            try:
                write_whole(descriptor, line)
                os.fsync(descriptor)
                return
            except OSError as error:
                os.ftruncate(descriptor, end)
                if error.errno not in FULL or not self._reserve.give_back():
                    raise


def _backwards(path: Path) -> Iterator[Entry | None]:
    """Yield the entries from the last to the first, and None for a line that is not an entry."""
    with contextlib.suppress(FileNotFoundError):
        for piece in pieces_backwards(path):
            yield None if piece.content is None else Entry.of(piece.content)
