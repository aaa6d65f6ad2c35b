"""The lines of a stream that a destination refused: set aside by whoever ships it, released by `replay`.

`<stream_id>.quarantine` has one JSON array a line, in the order in which things happened:

["aside", exporter, first_seq, last_seq, reason]      refused one by one; written before the cursor moves over them
["released", exporter, first_seq, last_seq, system]   sent again by somebody, and accepted
["again", exporter, after_seq]                        the exporter goes on behind this line: what came later is void

The file only grows, by what is new, so a refused line costs the same however many were refused before it. A line may
stand there many times and counts once. A record that is torn, or of another version, is passed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from otel_audit.journal.files import open_with_mode, write_whole

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
    """Lines that the destination refused one by one: a range of sequence numbers, both ends included."""

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
    """A range of lines, both ends included, that an exporter's destination has. `system`: the journal's own lines."""

    exporter: str
    first_seq: int
    last_seq: int
    system: bool


class Again(NamedTuple):
    """An exporter sends all lines behind this one again: nothing is known of them any more."""

    exporter: str
    after_seq: int


Record = SetAside | Released | Again
_KINDS: Final[Mapping[str, type[Record]]] = {"aside": SetAside, "released": Released, "again": Again}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
_Range = TypeVar("_Range", Quarantined, Released)


@dataclass(slots=True)
class Held:
    """What the records so far say of one exporter. Both lists are ascending, and no line is in two ranges of them."""

    aside: list[Quarantined] = field(default_factory=list)
    freed: list[Released] = field(default_factory=list)  # of what was aside

    @property
    def last_seq(self) -> int:
        """The highest line of which something is known; 0 when there is none."""
        return max([each[-1].last_seq for each in (self.aside, self.freed) if each], default=0)

    @property
    def freed_events(self) -> int:
        """How many events of the application were released."""
        return sum(each.last_seq - each.first_seq + 1 for each in self.freed if not each.system)

    def copy(self) -> Held:
        """Return one that may be changed."""
        return Held(list(self.aside), list(self.freed))

    def up_to(self, seq: int) -> Held:
        """Return what is known of the lines up to this one."""
        if self.last_seq <= seq:
            return self
        known = [Quarantined(1, seq, "")]
        return Held(_split(self.aside, known)[0], _split(self.freed, known)[0])

    def apply(self, records: Iterable[Record]) -> None:
        """Take in further records of this exporter."""
        for kind, group in groupby(records, key=type):  # whole groups, since each looks at all that is known
            if kind is SetAside:
                self._set_aside([Quarantined(*each[1:]) for each in group if isinstance(each, SetAside)])
            elif kind is Released:
                self._release(_disjoint(each for each in group if isinstance(each, Released)))
            else:
                cut = self.up_to(min(each.after_seq for each in group if isinstance(each, Again)))
                self.aside, self.freed = cut.aside, cut.freed

    def records(self, exporter: str) -> list[Record]:
        """Return the records that say all of this, whatever stands before them."""
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
    """The quarantine file beside a cursor. Any thread; nobody waits for who only reads."""

    def __init__(self, cursor: Path, *, mode: int = 0o600) -> None:
        self._cursor = cursor
        self._path, self._former = files_beside(cursor)
        self._mode = mode
        self._seen = _Seen(0, 0, {})

    def append(self, records: Sequence[Record]) -> None:
        """Write the records behind all others, in one write, under the lock of the file.

        Raises:
            OSError: none of them counts.
        """
        lines = [json.dumps([_NAMES[type(each)], *each], separators=(",", ":")).encode() + b"\n" for each in records]
        descriptor = open_with_mode(self._path, os.O_RDWR | os.O_APPEND, self._mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # for the moment of one write: a shipper and a replay may meet here
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
            with contextlib.suppress(OSError):  # not only closed: a child that was forked now has the descriptor too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def held(self) -> Mapping[str, Held]:
        """Return what the records say of each exporter. Reads what was appended since the last look.

        What one may not read is not there.
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
        self._seen = seen  # a new value: another thread may be looking at the one before
        return seen.held

    def released(self) -> list[Released]:
        """Return every release that was ever written, also those in the file that the release before kept them in."""
        return [each for each in _records(_content(self._path)) if isinstance(each, Released)]

    def formerly_released(self) -> list[Released]:
        """Return what stands in the file of its own that the release before, and its `replay`, write."""
        lines = _content(self._former).split(b"\n")
        return [each for line in lines if isinstance(each := _record(b'["released",' + line[1:]), Released)]

    def forget_formerly_released(self) -> None:
        """Remove that file: what it says was appended to this one. Raises nothing."""
        with contextlib.suppress(OSError):
            self._former.unlink()

    def sync(self) -> None:
        """What was appended survives a loss of power.

        Raises:
            OSError: it may not.
        """
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            os.fdatasync(file.fileno())

    def _give_to_owner(self, descriptor: int) -> None:
        """Only root can, and has to: the service that owns the cursor must be able to read and append."""
        with contextlib.suppress(OSError):
            cursor, own = self._cursor.stat(), os.fstat(descriptor)
            if (cursor.st_uid, cursor.st_gid) != (own.st_uid, own.st_gid):
                os.fchown(descriptor, cursor.st_uid, cursor.st_gid)


def release(cursor: Path, released: Sequence[Released], *, mode: int) -> None:
    """The lines count as exported from now on, whoever ships the stream of this cursor. `mode` is that of a new file.

    Raises:
        OSError: they do not, and may be sent again.
    """
    QuarantineFile(cursor, mode=mode).append(released)


def files_beside(cursor: Path) -> tuple[Path, Path]:
    """Return the paths of the quarantine of a stream: the file, and where the release before kept what was released."""
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
    except (FileNotFoundError, PermissionError):  # what one may not read is still told as quarantined
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
    """The same lines in ascending order, each once: two that send the same quarantine again both write it down."""
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
    """What of the ranges is inside the others, and what is outside. `by`: ascending, disjoint."""
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
