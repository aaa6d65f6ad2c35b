"""How far each exporter has come in a stream.

Two slots in a small preallocated file, written in place and in turn, each with a generation and a CRC: it can be
stored on a full disk, and a torn write leaves the other slot. Written only by the holder of the ship lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from otel_audit.journal.files import open_with_mode
from otel_audit.journal.released import Released, disjoint, read_released
from otel_audit.threads import new_lock

__all__ = ["Cursor", "Position", "Progress", "Quarantined", "is_over", "read_cursor"]

_MAGIC = b"otaudcur"
_HEAD = struct.Struct("<8sQII")  # magic, generation, length, CRC-32 of generation and payload
_SLOT_BYTES = 8192
# The cursor of a stream that ended is longer than its two slots by this: to open and read those of thousands of old
# streams takes seconds. It is a hole, for which a full disk has room too, and no slot is looked for there.
_OVER_BYTES = 1


class Position(NamedTuple):
    """A place between two lines: everything before it is dealt with. `seq` is the number of the last line before it."""

    segment: int = 1
    offset: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Lines that the destination refused one by one: a range of sequence numbers, both ends included."""

    first_seq: int
    last_seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What one exporter has done with a stream. Counts are of application events, but for `system`."""

    position: Position = field(default_factory=Position)
    exported: int = 0
    system: int = 0
    quarantined: int = 0
    damaged: int = 0
    dropped: int = 0
    quarantine: tuple[Quarantined, ...] = ()
    blocked: str = ""  # why nothing moves now

    @property
    def missing(self) -> int:
        """How many lines before the position were gone before they could be read: nothing else counts them."""
        return max(0, self.position.seq - self.exported - self.system - self.quarantined)

    @property
    def rank(self) -> tuple[int, int]:
        """What orders exporters of one stream: the lowest is furthest behind, and of those as far as it has least."""
        return self.position.seq, self.exported + self.quarantined

    def lacked_by(self, others: Iterable[Progress]) -> int:
        """How many of its lines one of the others is known to lack, which have come further."""
        ahead = (one for one in others if one.position.seq > self.position.seq)
        known = (one.missing - (one.position.seq - self.position.seq) for one in ahead)
        return max(0, max(known, default=0) - self.missing)

    def with_quarantined(self, seq: int, reason: str) -> Progress:
        """With one more line in quarantine; neighbours with the same reason become one range."""
        last = self.quarantine[-1] if self.quarantine else None
        if last is not None and last.last_seq + 1 == seq and last.reason == reason:
            ranges = (*self.quarantine[:-1], replace(last, last_seq=seq))
        else:
            ranges = (*self.quarantine, Quarantined(seq, seq, reason))
        return replace(self, quarantine=ranges)

    def without(self, released: Iterable[Released]) -> Progress:
        """With these lines exported instead of quarantined, if they are that."""
        kept, freed = _taken_off(self.quarantine, disjoint(released))
        return replace(
            self, exported=self.exported + freed, quarantined=self.quarantined - freed, quarantine=tuple(kept)
        )

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Progress:
        """From the JSON form in the cursor file."""
        return cls(
            **{
                **stored,
                "position": Position(**stored["position"]),
                "quarantine": tuple(Quarantined(**entry) for entry in stored["quarantine"]),
            }
        )


def _taken_off(ranges: Iterable[Quarantined], released: Sequence[Released]) -> tuple[list[Quarantined], int]:
    """What is left of the ranges, and how many application events are taken off. `released`: ascending, disjoint."""
    firsts = [each.first_seq for each in released]
    kept: list[Quarantined] = []
    freed = 0
    for entry in ranges:
        first = entry.first_seq
        for index in range(max(0, bisect_right(firsts, first) - 1), len(released)):
            each = released[index]
            if each.first_seq > entry.last_seq:
                break
            if each.last_seq < first:
                continue
            if each.first_seq > first:
                kept.append(replace(entry, first_seq=first, last_seq=each.first_seq - 1))
            if not each.system:
                freed += min(entry.last_seq, each.last_seq) - max(first, each.first_seq) + 1
            first = each.last_seq + 1
        if first <= entry.last_seq:
            kept.append(replace(entry, first_seq=first))
    return kept, freed


@dataclass(slots=True)
class _State:
    generation: int = 0
    ended: bool = False
    exporters: dict[str, Progress] = field(default_factory=dict)


def read_cursor(path: Path) -> tuple[dict[str, Progress], bool]:
    """The progress of each exporter, and whether the stream has ended and been read to its end. For onlookers.

    Lines that were released from quarantine count as exported.
    """
    try:
        state = _read(path.read_bytes()) or _State()
    except FileNotFoundError:
        state = _State()
    return {name: _as_seen(path, name, progress) for name, progress in state.exporters.items()}, state.ended


def is_over(path: Path) -> bool:
    """Return True if the size of a cursor file says that its stream ended and is delivered. Nothing is opened.

    False may also mean that it could not be noted there.
    """
    try:
        size = path.stat().st_size
    except OSError:
        return False
    return size > 2 * _SLOT_BYTES and size % (2 * _SLOT_BYTES) == _OVER_BYTES


def _as_seen(path: Path, exporter: str, progress: Progress) -> Progress:
    if not progress.quarantine:
        return progress
    return progress.without(each for each in read_released(path) if each.exporter == exporter)


class Cursor:
    """The cursor file of a stream, for the holder of its ship lock. Any thread of that process.

    `note` says what was wrong with the file when it was opened, if anything: both slots unreadable means that the
    stream is sent again from its oldest line. `origin` is the progress of who begins: with the counts of what retention
    removed of the stream, so that the numbers go on adding up.

    Raises:
        OSError: the file can be neither opened nor made.
    """

    def __init__(self, path: Path, *, mode: int = 0o600, origin: Progress | None = None) -> None:
        self._path = path
        self._origin = origin or Progress()
        self._mode = mode
        self._lock = new_lock()
        self._descriptor = open_with_mode(path, os.O_RDWR, mode)
        try:
            self._begin()
        except BaseException:
            self.abandon()  # or each try on a full disk would cost a descriptor
            raise

    def _begin(self) -> None:
        content = os.pread(self._descriptor, 1 << 26, 0)
        state = _read(content)
        written = content.strip(b"\0")  # nothing is stored before the first progress
        is_lost = written and not state
        self.note = f"{self._path}: no readable slot, sending again from the oldest line" if is_lost else None
        self._state = state or _State()
        self._slot_bytes = max(_SLOT_BYTES, len(content) // 2)
        if len(content) < 2 * self._slot_bytes:
            os.posix_fallocate(self._descriptor, 0, 2 * self._slot_bytes)

    @property
    def ended(self) -> bool:
        """The writer is gone, and every exporter has had every line."""
        return self._state.ended

    def progress(self, exporter: str) -> Progress:
        """How far this exporter has come; nowhere yet, if it is new to the stream."""
        return self._state.exporters.get(exporter, self._origin)

    def seen(self, exporter: str) -> Progress:
        """Its progress as onlookers see it: lines that somebody released from quarantine count as exported."""
        return _as_seen(self._path, exporter, self.progress(exporter))

    def exporters(self) -> dict[str, Progress]:
        """The progress of every exporter that the stream knows."""
        return dict(self._state.exporters)

    def advance(self, exporter: str, progress: Progress) -> None:
        """Keep the progress of one exporter. It is in the file when this returns.

        Raises:
            OSError: it is kept in memory only; after a crash the lines are sent again.
        """
        with self._lock:
            self._keep(replace(self._state, exporters={**self._state.exporters, exporter: progress}))

    def end(self) -> None:
        """Keep that the stream has ended and is delivered, so that nobody looks at it again."""
        with self._lock:
            if not self._state.ended:
                self._keep(replace(self._state, ended=True))
            if self._descriptor >= 0:
                # In this order: a loss of power must not leave a stream that nobody looks at and that has not ended.
                os.fdatasync(self._descriptor)
                os.ftruncate(self._descriptor, 2 * self._slot_bytes + _OVER_BYTES)

    def restart(self, exporter: str) -> None:
        """Keep that this exporter has none of the lines: all are pending again, and counted again as they go."""
        with self._lock:
            if self._descriptor >= 0:
                os.ftruncate(self._descriptor, 2 * self._slot_bytes)
            self._keep(_State(self._state.generation, False, {**self._state.exporters, exporter: self._origin}))

    def close(self) -> None:
        """Nothing is stored any more; what comes later is kept in memory only."""
        with self._lock:
            if self._state.exporters and self._is_gone():
                with contextlib.suppress(OSError):
                    self._store(self._state)
            self.abandon()

    def abandon(self) -> None:
        """In a forked child, where the lock may be held by a thread that is gone: close the descriptor."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _keep(self, state: _State) -> None:
        try:
            self._store(state)
        finally:  # not before: what this process says is delivered is in the file, where others look for it
            self._state = state

    def _store(self, state: _State) -> None:
        if self._descriptor < 0:
            return
        # The generation moves when it is in the file: a slot whose write failed is written again, and not the other
        # one, which is the last that is known to be whole.
        generation = state.generation + 1
        slot = _slot(state, generation)
        if len(slot) > self._slot_bytes:
            self._grow(slot, generation)
        elif not self._is_put_back(slot, generation):
            _write_at(self._descriptor, slot, generation % 2 * self._slot_bytes)
        state.generation = generation

    def _is_gone(self) -> bool:
        """True when somebody removed the file: what is written into it would be lost with this process."""
        return self._descriptor >= 0 and not self._path.exists()

    def _is_put_back(self, slot: bytes, generation: int) -> bool:
        """True when the file had been removed, and is there again with this slot."""
        if not self._is_gone():
            return False
        try:
            self._grow(slot, generation)
        except OSError:  # the directory is gone too, or full
            return False
        return True

    def _grow(self, slot: bytes, generation: int) -> None:
        """A long quarantine does not fit any more: a larger file takes the place of this one, or of none."""
        slot_bytes = self._slot_bytes
        while slot_bytes < len(slot):
            slot_bytes *= 2
        larger = self._path.with_suffix(".cursor.new")
        descriptor = open_with_mode(larger, os.O_RDWR | os.O_TRUNC, self._mode)
        try:
            os.posix_fallocate(descriptor, 0, 2 * slot_bytes)
            _write_at(descriptor, slot, generation % 2 * slot_bytes)
            os.fsync(descriptor)
            larger.rename(self._path)
        except BaseException:
            os.close(descriptor)
            larger.unlink(missing_ok=True)
            raise
        former, self._descriptor, self._slot_bytes = self._descriptor, descriptor, slot_bytes
        os.close(former)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _slot(state: _State, generation: int) -> bytes:
    exporters = {
        name: {**asdict(progress), "position": progress.position._asdict()}
        for name, progress in state.exporters.items()
    }
    payload = json.dumps({"ended": state.ended, "exporters": exporters}, separators=(",", ":")).encode()
    return _HEAD.pack(_MAGIC, generation, len(payload), _checksum(generation, payload)) + payload


def _read(content: bytes) -> _State | None:
    """The newer of the two slots that can be read."""
    half = max(_SLOT_BYTES, len(content) // 2)  # also of a file that was cut
    states = [state for state in (_read_slot(content[:half]), _read_slot(content[half:])) if state is not None]
    return max(states, key=lambda state: state.generation, default=None)


def _read_slot(slot: bytes) -> _State | None:
    if len(slot) < _HEAD.size:
        return None
    magic, generation, length, checksum = _HEAD.unpack_from(slot)
    payload = slot[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(payload) != length or checksum != _checksum(generation, payload):
        return None
    try:
        stored = json.loads(payload)
        exporters = {name: Progress.of(progress) for name, progress in stored["exporters"].items()}
        return _State(generation, stored["ended"], exporters)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # whole, but of another version of this package


def _checksum(generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, generation & 0xFFFFFFFF)
