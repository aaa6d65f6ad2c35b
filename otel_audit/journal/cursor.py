"""The cursor: how far each exporter has come in a stream.

A cursor is a small preallocated file with two slots, each with a generation and a CRC. The slots are written in place
and in turn. This works on a full disk, and a torn write leaves the other slot intact. Only the holder of the ship lock
writes the file. Refused lines are counted here and listed in the quarantine file beside it, which is written first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from otel_audit.journal.counts import Progress
from otel_audit.journal.files import open_with_mode
from otel_audit.journal.line import Position
from otel_audit.journal.quarantine import Again, Held, Quarantined, QuarantineFile, Record, Released, SetAside
from otel_audit.threads import new_lock

__all__ = ["Cursor", "Position", "Progress", "is_over", "read_cursor"]

_MAGIC = b"otaudcur"
_HEAD = struct.Struct("<8sQII")  # magic, generation, length, CRC-32 of generation and payload
_SLOT_BYTES = 8192
# The cursor of an ended stream is longer than its two slots by this much, so that the size alone tells. Opening and
# reading the cursors of thousands of old streams would take seconds. The extra bytes are a hole, which fits on a full
# disk, and hold no slot.
_OVER_BYTES = 1
# For older versions, which kept the quarantine in the cursor: they find one range with this reason, from the first to
# the last line ever refused. They continue from the position, and their retention keeps the lines. Without the range
# they would discard the whole file.
_LISTED = "in the .quarantine file beside the cursor, which a newer otel-audit reads"
# The reason for a stalled delivery may be a page of HTML, and the slot has to hold one for each exporter.
_BLOCKED_CHARS: Final = (1000, 100, 0)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _State(msgspec.Struct):
    """The content of a slot. `listed` holds the first and last line that each exporter ever put into the quarantine."""

    generation: int = 0
    ended: bool = False
    exporters: dict[str, Progress] = msgspec.field(default_factory=dict)
    listed: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)


def read_cursor(path: Path, *, listed: bool = True) -> tuple[dict[str, Progress], bool]:
    """Return the progress of each exporter, and True if the stream has ended and is fully delivered. For onlookers.

    Lines that were released from quarantine count as exported. With `listed=False` the quarantine, which may be long,
    is not read; this is enough for a caller that needs only positions.
    """
    try:
        state = _read(path.read_bytes()) or _State()
    except FileNotFoundError:
        state = _State()
    if not listed or not _has_quarantine(state):
        return state.exporters, state.ended
    return _seen(state, QuarantineFile(path)), state.ended


def _has_quarantine(state: _State) -> bool:
    """Return False for most streams, so that no other file of theirs has to be opened."""
    return bool(state.listed) or any(progress.quarantine for progress in state.exporters.values())


def _seen(state: _State, quarantine: QuarantineFile) -> dict[str, Progress]:
    held = _held(state, quarantine)
    return {name: progress.listing(held[name]) for name, progress in state.exporters.items()}


def _held(state: _State, quarantine: QuarantineFile) -> dict[str, Held]:
    """Return the quarantine of each exporter, from the file or from the slot of an older version."""
    former = quarantine.formerly_released()  # read first: another process may move it into the file and remove it
    file = quarantine.held()
    return {
        name: _held_by(name, progress.quarantine, file.get(name) if name in state.listed else None, quarantine, former)
        for name, progress in state.exporters.items()
    }


def _held_by(
    name: str,
    ranges: Sequence[Quarantined],
    file: Held | None,
    quarantine: QuarantineFile,
    former: Sequence[Released],
) -> Held:
    held = Held() if file is None else file.copy()
    if ranges:
        in_slot = Held()
        in_slot.apply(SetAside(name, *each) for each in ranges)
        in_slot.apply(each for each in quarantine.released() if each.exporter == name)
        held.apply(in_slot.records(name)[1:])
    held.apply(each for each in former if each.exporter == name)
    return held


def is_over(path: Path) -> bool:
    """Return True if the size of a cursor file marks its stream as ended and delivered. No file is opened.

    An ended stream can give False as well, if the mark could not be written.
    """
    try:
        size = path.stat().st_size
    except OSError:
        return False
    return size > 2 * _SLOT_BYTES and size % (2 * _SLOT_BYTES) == _OVER_BYTES


class Cursor:
    """The cursor file of a stream, for the holder of its ship lock. Any thread of that process.

    `note` describes a problem found when the file was opened, if there was one. If neither slot can be read, the stream
    is sent again from its oldest line. `origin` is the progress of an exporter that is new to the stream. It counts the
    lines that retention has removed, so that the numbers still add up.

    Raises:
        OSError: the file can be neither opened nor created.
    """

    def __init__(self, path: Path, *, mode: int = 0o600, origin: Progress | None = None) -> None:
        self._path = path
        self._origin = origin or Progress()
        self._mode = mode
        self._lock = new_lock()
        self._quarantine = QuarantineFile(path, mode=mode)
        self._formerly_released: list[Released] = []
        self._owed: list[Record] = []  # records that the quarantine file must have before the next slot is written
        self._descriptor = open_with_mode(path, os.O_RDWR, mode)
        try:
            self._begin()
        except BaseException:
            self.abandon()  # otherwise each attempt on a full disk would leak a descriptor
            raise

    def _begin(self) -> None:
        content = os.pread(self._descriptor, 1 << 26, 0)
        state = _read(content)
        written = content.strip(b"\0")  # a new file is all zeros until the first progress
        is_lost = written and not state
        self.note = f"{self._path}: no readable slot, sending again from the oldest line" if is_lost else None
        self._state = state or _State()
        self._slot_bytes = max(_SLOT_BYTES, len(content) // 2)  # in older versions it grew with the quarantine
        if len(content) < 2 * self._slot_bytes:
            os.posix_fallocate(self._descriptor, 0, 2 * self._slot_bytes)
        self._take_over()

    def _take_over(self) -> None:
        """Find the records that the quarantine file lacks to agree with what onlookers see now.

        Some are missing if a process died between the two writes, if the cursor was lost or restarted, or if an older
        version kept the quarantine in the slot.
        """
        state, held, file = self._state, _held(self._state, self._quarantine), self._quarantine.held()
        self._formerly_released = self._quarantine.formerly_released()
        for name in {*state.exporters, *file}:
            progress, there = state.exporters.get(name, self._origin), file.get(name, Held())
            wanted = held.get(name, Held()).up_to(progress.position.seq)
            if there != wanted:
                is_ahead = there.up_to(wanted.last_seq) == wanted
                self._owed += [Again(name, wanted.last_seq)] if is_ahead else wanted.records(name)
            if progress.quarantine:
                state.exporters[name] = replace(progress, quarantine=())
                state.listed[name] = (1, wanted.last_seq)

    @property
    def ended(self) -> bool:
        """True if the writer is gone and every exporter has dealt with every line."""
        return self._state.ended

    def progress(self, exporter: str) -> Progress:
        """Return the progress of this exporter. One that is new to the stream starts at `origin`."""
        return self._state.exporters.get(exporter, self._origin)

    def seen(self, exporter: str) -> Progress:
        """Return an exporter's progress as onlookers see it: lines released from quarantine count as exported."""
        state = self._state
        if exporter not in state.listed:
            return self.progress(exporter)
        seen = read_cursor(self._path)[0] if self._owed else _seen(state, self._quarantine)
        return seen.get(exporter, self.progress(exporter))  # missing if somebody has just removed the file

    def exporters(self) -> dict[str, Progress]:
        """Return the progress of every exporter known to the stream."""
        return dict(self._state.exporters)

    def advance(self, exporter: str, progress: Progress) -> None:
        """Append an exporter's quarantine and keep its progress. Both are in their files when this returns.

        Raises:
            OSError: the progress is kept in memory only, so after a crash the lines are sent again. If the quarantine
                could not be written, only the reason is kept, and the exporter does not advance.
        """
        records = [SetAside(exporter, *each) for each in progress.quarantine]
        kept = replace(progress, quarantine=())
        with self._lock:
            listed = self._state.listed
            if records:
                first, last = listed.get(exporter, (records[0].first_seq, 0))
                listed = {**listed, exporter: (first, max(last, records[-1].last_seq))}
            try:
                self._append(records)
            except OSError as error:
                raise self._blocked(exporter, error) from error
            self._keep(replace(self._state, exporters={**self._state.exporters, exporter: kept}, listed=listed))

    def end(self) -> None:
        """Mark the stream as ended and delivered, so that it is never examined again."""
        with self._lock:
            if not self._state.ended:
                self._append([])
                self._keep(replace(self._state, ended=True))
            if self._descriptor >= 0:
                if self._state.listed:
                    self._quarantine.sync()
                # In this order, or a loss of power could leave a stream marked as ended whose end is not stored.
                os.fdatasync(self._descriptor)
                os.ftruncate(self._descriptor, 2 * self._slot_bytes + _OVER_BYTES)

    def restart(self, exporter: str) -> None:
        """Start this exporter over: all lines are pending again, and are counted again as they are sent."""
        with self._lock:
            if self._descriptor >= 0:
                os.ftruncate(self._descriptor, 2 * self._slot_bytes)
            self._append([])
            listed = {name: lines for name, lines in self._state.listed.items() if name != exporter}
            exporters = {**self._state.exporters, exporter: self._origin}
            self._keep(_State(self._state.generation, False, exporters, listed))
            self._owed.append(Again(exporter, 0))

    def close(self) -> None:
        """Close the file. Later progress is kept in memory only."""
        with contextlib.suppress(OSError):
            self.restore()
        with self._lock:
            self.abandon()

    def restore(self) -> None:
        """Write the file again if somebody removed it. With nothing to deliver, the loss would otherwise go unnoticed.

        Raises:
            OSError: the file could not be written.
        """
        with self._lock:
            if self._state.exporters and self._is_gone():
                self._append([])
                self._store(self._state)

    def abandon(self) -> None:
        """Close the descriptor in a forked child, without the lock, which a thread of the parent may hold."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _append(self, records: Sequence[Record]) -> None:
        """Write the records before the slot that counts them. After a death in between, the lines are sent again."""
        if self._descriptor < 0 or not (self._owed or records):
            return
        self._quarantine.append([*self._owed, *records])
        self._owed = []

    def _blocked(self, exporter: str, error: OSError) -> OSError:
        """Store the reason why delivery has stalled. The slot always has room for it."""
        reason = "no room for the quarantine" if error.errno in _NO_ROOM else f"cannot write the quarantine: {error}"
        if not self._owed:  # otherwise only the slot still holds the quarantine that an older version kept there
            blocked = replace(self.progress(exporter), blocked=reason)
            with contextlib.suppress(OSError):
                self._keep(replace(self._state, exporters={**self._state.exporters, exporter: blocked}))
        return OSError(error.errno, reason, str(self._path.with_suffix(".quarantine")))

    def _keep(self, state: _State) -> None:
        try:
            self._store(state)
        finally:  # only now: whatever this process reports as delivered must be in the file, where others look
            self._state = state

    def _store(self, state: _State) -> None:
        if self._descriptor < 0:
            return
        # The generation advances only once the slot is written. After a failed write the same slot is written again,
        # since the other one is the last that is known to be whole.
        generation = state.generation + 1
        slot = _slot(state, generation, self._slot_bytes)
        if not self._is_put_back(slot, generation):
            _write_at(self._descriptor, slot, generation % 2 * self._slot_bytes)
        state.generation = generation
        # Keep the older version's file if its `replay` has added to it since it was read.
        if self._formerly_released and self._formerly_released == self._quarantine.formerly_released():
            self._quarantine.forget_formerly_released()
        self._formerly_released = []

    def _is_gone(self) -> bool:
        """Return True if somebody removed the file, so that anything written to it would be lost with this process."""
        return self._descriptor >= 0 and not self._path.exists()

    def _is_put_back(self, slot: bytes, generation: int) -> bool:
        """Return True if the file had been removed and now exists again with this slot."""
        if not self._is_gone():
            return False
        try:
            self._put_back(slot, generation)
        except OSError:  # the directory is gone as well, or the disk is full
            return False
        return True

    def _put_back(self, slot: bytes, generation: int) -> None:
        new = self._path.with_suffix(".cursor.new")
        descriptor = open_with_mode(new, os.O_RDWR | os.O_TRUNC, self._mode)
        try:
            os.posix_fallocate(descriptor, 0, 2 * self._slot_bytes)
            _write_at(descriptor, slot, generation % 2 * self._slot_bytes)
            os.fsync(descriptor)
            new.rename(self._path)
        except BaseException:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            raise
        former, self._descriptor = self._descriptor, descriptor
        os.close(former)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _slot(state: _State, generation: int, room: int) -> bytes:
    """Return the slot for this state, at most `room` bytes long. Long reasons are cut.

    Raises:
        OSError: the slot cannot hold that many exporters.
    """
    for most in _BLOCKED_CHARS:
        exporters = {
            name: {**progress.stored(), **_in_slot(state.listed.get(name)), "blocked": progress.blocked[:most]}
            for name, progress in state.exporters.items()
        }
        payload = json.dumps({"ended": state.ended, "exporters": exporters}, separators=(",", ":")).encode()
        slot = _HEAD.pack(_MAGIC, generation, len(payload), _checksum(generation, payload)) + payload
        if len(slot) <= room:
            return slot
    raise OSError(errno.EFBIG, f"expected at most {room} bytes for all exporters, got {len(slot)} for {len(exporters)}")


def _in_slot(listed: tuple[int, int] | None) -> Mapping[str, Any]:
    return {"quarantine": [] if listed is None else [Quarantined(*listed, _LISTED)._asdict()]}


def _read(content: bytes) -> _State | None:
    """Return the newer of the two slots, or the older one if the newer one cannot be read."""
    half = max(_SLOT_BYTES, len(content) // 2)  # `max` for a file that was cut
    payloads = [each for each in (_payload(content[:half]), _payload(content[half:])) if each is not None]
    return next((state for each in sorted(payloads, reverse=True) if (state := _state(*each)) is not None), None)


def _payload(slot: bytes) -> tuple[int, bytes] | None:
    """Return the generation and the content of a slot, or None if it is not whole."""
    if len(slot) < _HEAD.size:
        return None
    magic, generation, length, checksum = _HEAD.unpack_from(slot)
    payload = slot[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(payload) != length or checksum != _checksum(generation, payload):
        return None
    return generation, payload


def _state(generation: int, payload: bytes) -> _State | None:
    try:
        stored = json.loads(payload)
        exporters = {name: Progress.of(progress) for name, progress in stored["exporters"].items()}
        listed = {
            name: (each.first_seq, each.last_seq)
            for name, progress in exporters.items()
            for each in progress.quarantine
            if each.reason == _LISTED
        }
        for name in listed:
            ranges = tuple(each for each in exporters[name].quarantine if each.reason != _LISTED)
            exporters[name] = replace(exporters[name], quarantine=ranges)
        return _State(generation, stored["ended"], exporters, listed)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # whole, but written by another version of this package


def _checksum(generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, generation & 0xFFFFFFFF)
