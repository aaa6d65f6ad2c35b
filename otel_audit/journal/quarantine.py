"""The lines of a stream that a destination refused. The shipper sets them aside, and `replay` releases them.

`<stream_id>.quarantine` has one JSON array a line, in the order of events:

["aside", exporter, first_seq, last_seq, reason]      refused one by one; written before the cursor moves over them
["released", exporter, first_seq, last_seq, system]   sent again by `replay`, and accepted
["again", exporter, after_seq]                        all lines after this one are sent again: their records are void

Records are only ever appended, so a refused line costs the same however many were refused before it. A line may be
named many times and counts once. Torn records, and those of another version, are skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from otel_audit.journal.files import open_with_mode, sync_file, write_whole

__all__ = [
    "Again",
    "Held",
    "QuarantineFile",
    "Quarantined",
    "Record",
    "Released",
    "SetAside",
    "files_beside",
    "release",
]


class Quarantined(NamedTuple):
    """A range of lines that the destination refused one by one: sequence numbers, both ends included."""

    first_seq: int
    last_seq: int
    reason: str


class SetAside(NamedTuple):
    """A range of lines, both ends included, that an exporter's destination refused one by one."""

    exporter: str
    first_seq: int
    last_seq: int
    reason: str


class Released(NamedTuple):
    """A range of lines, both ends included, that a destination accepted later. `system` counts the journal's own."""

    exporter: str
    first_seq: int
    last_seq: int
    system: bool


class Again(NamedTuple):
    """An exporter sends all lines behind this one again, so earlier records about those lines are void."""

    exporter: str
    after_seq: int


Record = SetAside | Released | Again
_KINDS: Final[Mapping[str, type[Record]]] = {"aside": SetAside, "released": Released, "again": Again}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
_Range = TypeVar("_Range", Quarantined, Released)


class Held(msgspec.Struct):
    """The state of one exporter's quarantine after the records so far. Both lists are ascending, without overlaps."""

    aside: list[Quarantined] = msgspec.field(default_factory=list)
    freed: list[Released] = msgspec.field(default_factory=list)  # of what was aside

    @property
    def last_seq(self) -> int:
        """The highest line that a record names, or 0."""
        return max([each[-1].last_seq for each in (self.aside, self.freed) if each], default=0)

    @property
    def freed_events(self) -> int:
        """The number of the application's events that were released."""
        return sum(each.last_seq - each.first_seq + 1 for each in self.freed if not each.system)

    def copy(self) -> Held:
        """Return a copy that the caller may change."""
        return Held(list(self.aside), list(self.freed))

    def up_to(self, seq: int) -> Held:
        """Return the part that concerns lines up to this one."""
        if self.last_seq <= seq:
            return self
        known = [Quarantined(1, seq, "")]
        return Held(_split(self.aside, known)[0], _split(self.freed, known)[0])

    def apply(self, records: Iterable[Record]) -> None:
        """Apply further records of this exporter."""
        for kind, group in groupby(records, key=type):  # in groups, since each step goes through the whole state
            if kind is SetAside:
                self._set_aside([Quarantined(*each[1:]) for each in group if isinstance(each, SetAside)])
            elif kind is Released:
                self._release(_disjoint(each for each in group if isinstance(each, Released)))
            else:
                cut = self.up_to(min(each.after_seq for each in group if isinstance(each, Again)))
                self.aside, self.freed = cut.aside, cut.freed

    def records(self, exporter: str) -> list[Record]:
        """Return the records that produce this state, whatever records come before them."""
        freed = [SetAside(exporter, each.first_seq, each.last_seq, "") for each in self.freed]
        aside = [SetAside(exporter, *each) for each in self.aside]
        return [Again(exporter, 0), *freed, *self.freed, *aside]

    def _set_aside(self, ranges: Sequence[Quarantined]) -> None:
        added = _disjoint(ranges)
        if added[0].first_seq <= self.last_seq:
            self.freed = _split(self.freed, added)[1]
            added = sorted([*_split(self.aside, added)[1], *added])
            self.aside = []
        for each in added:
            last = self.aside[-1] if self.aside else None
            if last is not None and last.last_seq + 1 == each.first_seq and last.reason == each.reason:
                self.aside[-1] = last._replace(last_seq=each.last_seq)
            else:
                self.aside.append(each)

    def _release(self, released: Sequence[Released]) -> None:
        freed = _split(released, self.aside)[0]
        self.aside = _split(self.aside, released)[1]
        self.freed = sorted([*self.freed, *freed], key=lambda each: each.first_seq)


class _Seen(NamedTuple):
    inode: int
    end: int  # behind the last whole record that was read
    held: Mapping[str, Held]


class QuarantineFile:
    """The quarantine file beside a cursor. Safe in any thread; readers take no lock."""

    def __init__(self, cursor: Path, *, mode: int = 0o600) -> None:
        self._cursor = cursor
        self._path, self._former = files_beside(cursor)
        self._mode = mode
        self._seen = _Seen(0, 0, {})

    def append(self, records: Sequence[Record]) -> None:
        """Append the records in one write, under the lock of the file.

        Raises:
            OSError: none of the records counts.
        """
        lines = [json.dumps([_NAMES[type(each)], *each], separators=(",", ":")).encode() + b"\n" for each in records]
        descriptor = open_with_mode(self._path, os.O_RDWR | os.O_APPEND, self._mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # for one write: a shipper and a replay may write at once
            self._give_to_owner(descriptor)
            end = os.fstat(descriptor).st_size
            torn = end and os.pread(descriptor, 1, end - 1) != b"\n"
            try:
                write_whole(descriptor, b"\n" * bool(torn) + b"".join(lines))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise
        finally:
            with contextlib.suppress(OSError):  # closing is not enough: a child forked now has the descriptor too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def held(self) -> Mapping[str, Held]:
        """Return the state of each exporter's quarantine, after reading any records appended since the last call.

        A file that this process may not read counts as empty.
        """
        seen = self._seen
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != seen.inode or status.st_size < seen.end:
                    seen = _Seen(status.st_ino, 0, {})
                if status.st_size > seen.end:
                    file.seek(seen.end)
                    added = file.read()
                    seen = _with(seen, added[: added.rfind(b"\n") + 1])
        except (FileNotFoundError, PermissionError):
            seen = _Seen(0, 0, {})
        self._seen = seen  # a new object, since another thread may be using the old one
        return seen.held

    def released(self) -> list[Released]:
        """Return every release ever recorded, including those in the separate file of older versions."""
        return [each for each in _records(_content(self._path)) if isinstance(each, Released)]

    def formerly_released(self) -> list[Released]:
        """Return the releases in the separate file that older versions and their `replay` write."""
        lines = _content(self._former).split(b"\n")
        return [each for line in lines if isinstance(each := _record(b'["released",' + line[1:]), Released)]

    def forget_formerly_released(self) -> None:
        """Remove the file of older versions, once its releases were appended to this one. Never raises."""
        with contextlib.suppress(OSError):
            self._former.unlink()

    def sync(self) -> None:
        """Make the appended records durable.

        Raises:
            OSError: a loss of power may still take them.
        """
        with contextlib.suppress(FileNotFoundError):
            sync_file(self._path)

    def _give_to_owner(self, descriptor: int) -> None:
        """Give a file made by root the owner of the cursor, so that the service can read it and append to it."""
        with contextlib.suppress(OSError):
            cursor, own = self._cursor.stat(), os.fstat(descriptor)
            if (cursor.st_uid, cursor.st_gid) != (own.st_uid, own.st_gid):
                os.fchown(descriptor, cursor.st_uid, cursor.st_gid)


def release(cursor: Path, released: Sequence[Released], *, mode: int) -> None:
    """Count the lines as exported from now on, whoever ships the stream of this cursor. A new file gets this `mode`.

    Raises:
        OSError: the lines do not count as exported, and may be sent again.
    """
    QuarantineFile(cursor, mode=mode).append(released)


def files_beside(cursor: Path) -> tuple[Path, Path]:
    """Return the paths of a stream's quarantine: its file, and the file in which older versions kept the releases."""
    return cursor.with_suffix(".quarantine"), cursor.with_suffix(".released")


def _with(seen: _Seen, added: bytes) -> _Seen:
    by_exporter: dict[str, list[Record]] = {}
    for record in _records(added):
        by_exporter.setdefault(record.exporter, []).append(record)
    held = {name: each.copy() if name in by_exporter else each for name, each in seen.held.items()}
    for name, records in by_exporter.items():
        held.setdefault(name, Held()).apply(records)
    return _Seen(seen.inode, seen.end + len(added), held)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, PermissionError):  # the lines of an unreadable file still count as quarantined
        return b""


def _records(content: bytes) -> Iterator[Record]:
    return (record for line in content.split(b"\n") if line and (record := _record(line)) is not None)


def _record(line: bytes) -> Record | None:
    try:
        name, exporter, *rest = json.loads(line)
        return _of(_KINDS[name], exporter, *rest)
    except (ValueError, TypeError, KeyError):
        return None


def _of(kind: type[Record], exporter: Any, first: Any, last: Any = 0, more: Any = "") -> Record:
    if kind is Again:
        return Again(str(exporter), int(first))
    if not 0 < int(first) <= int(last):
        raise ValueError("expected a range of lines")
    if kind is Released:
        return Released(str(exporter), int(first), int(last), bool(more))
    return SetAside(str(exporter), int(first), int(last), str(more))


def _disjoint(ranges: Iterable[_Range]) -> list[_Range]:
    """Return the same lines ascending, each once. If two replays send the same lines, both record them."""
    found: list[_Range] = []
    done = 0
    for each in sorted(ranges, key=lambda one: (one.first_seq, one.last_seq)):
        first = max(each.first_seq, done + 1)
        if first <= each.last_seq:
            found.append(each._replace(first_seq=first))
            done = each.last_seq
    return found


def _split(
    ranges: Iterable[_Range], by: Sequence[Quarantined] | Sequence[Released]
) -> tuple[list[_Range], list[_Range]]:
    """Return the parts of the ranges inside the ranges `by`, and those outside. `by` is ascending and disjoint."""
    firsts = [each.first_seq for each in by]
    inside: list[_Range] = []
    outside: list[_Range] = []
    for entry in ranges:
        first = entry.first_seq
        for index in range(max(0, bisect_right(firsts, first) - 1), len(by)):
            each = by[index]
            if each.first_seq > entry.last_seq:
                break
            if each.last_seq < first:
                continue
            if each.first_seq > first:
                outside.append(entry._replace(first_seq=first, last_seq=each.first_seq - 1))
            last = min(entry.last_seq, each.last_seq)
            inside.append(entry._replace(first_seq=max(first, each.first_seq), last_seq=last))
            first = last + 1
        if first <= entry.last_seq:
            outside.append(entry._replace(first_seq=first))
    return inside, outside
