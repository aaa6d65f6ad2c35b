"""The unsigned ledger of earlier versions: `ledger.jsonl`, with a `retain` entry for each segment that was removed.

Hash-chained and durable before what it tells is done, but nobody signed it. Retention writes it where nobody keeps a
signed ledger; elsewhere it stays where it is, is only read, and one that still grows shows an older version at work.

One JSON object a line. A kind names its content; the ledger's own keys come last.
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
    """One line of the ledger. `number` counts from 1; `prev_hash` is of the line before it, as it is in the file."""

    kind: str
    content: Mapping[str, Any]
    time_ns: int
    number: int
    prev_hash: str | None

    @classmethod
    def of(cls, line: bytes) -> Entry | None:
        """The entry in a line without its newline; None when it is none."""
        try:
            stored = json.loads(line)
            kind, content = stored["kind"], stored[stored["kind"]]
            if not isinstance(content, dict):
                return None
            return cls(kind, content, int(stored["time_ns"]), int(stored["number"]), stored.get("prev_hash"))
        except (ValueError, KeyError, TypeError):
            return None

    def line(self) -> bytes:
        """As it is stored, without its newline."""
        own = {"time_ns": self.time_ns, "number": self.number, "prev_hash": self.prev_hash}
        stored = {"format": _FORMAT, "kind": self.kind, self.kind: self.content}
        return json.dumps({**stored, **own}, separators=(",", ":")).encode()


def entries(directory: Path) -> Iterator[Entry]:
    """Every entry of a directory's ledger, oldest first; none without a ledger. A torn or damaged line is passed over.

    Raises:
        OSError: it cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        for piece in pieces(directory / _NAME):
            if piece.content is not None and (entry := Entry.of(piece.content)) is not None:
                yield entry


def latest(directory: Path, kind: str) -> Entry | None:
    """The last entry of this kind; None when there is none.

    Raises:
        OSError: the ledger cannot be read.
    """
    return next((entry for entry in _backwards(directory / _NAME) if entry is not None and entry.kind == kind), None)


def is_begun(directory: Path) -> bool:
    """True when the directory has a ledger."""
    return (directory / _NAME).exists()


def has_room(directory: Path) -> bool:
    """True when an entry can be written although the disk is full: the ledger's reserve is whole."""
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
        """The right to write; None when somebody else had it for the whole time.

        Raises:
            OSError: the lock file can be neither opened nor made.
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
        """Return once the entry is durable: only then may be done what it tells.

        What a crash left of an unfinished entry is cut off: what that was to tell was not done. On a full disk the
        entry takes the place that `keep_room` has kept for it.

        Raises:
            OSError: the entry is not in the ledger, as far as the disk can be believed; nothing may be done.
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
        """There is a reserve for entries on a disk that is full later, unless it is so already."""
        self._reserve.keep()

    def release(self, *, remove: bool = True) -> None:
        """Others may write. `remove`: the lock file is gone too, unless a signed ledger has it for good."""
        self._lock.release(remove=remove and not LedgerFiles(self._directory).key.exists())

    def abandon(self) -> None:
        """In a forked child: leave the lock to the parent."""
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
    """The entries from the last to the first; None for a line that is none."""
    with contextlib.suppress(FileNotFoundError):
        for piece in pieces_backwards(path):
            yield None if piece.content is None else Entry.of(piece.content)
