"""One stream while it is written: its segments, the head of its chain, and what is done when a write fails.

Not safe for threads by itself: `Journal` holds its lock around every call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from otel_audit.journal.cursor import Position
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import GAP, SEGMENT, Tail, digest, is_system, system_event
from otel_audit.journal.locks import FileLock
from otel_audit.journal.open_stream import Head
from otel_audit.journal.segment_file import copy_bytes, is_at, open_segment, sync_directory, write_whole
from otel_audit.journal.segment_sync import SegmentSync
from otel_audit.settings import Durability

__all__ = ["Damage", "Limits", "StreamWriter", "SyncFailed"]

FORMAT_VERSION = 1
_LOOK_BACK_BYTES = 1 << 20  # more than the longest line


@dataclass(frozen=True, slots=True)
class Limits:
    """When a segment is full, who may read it, and how much the directory may hold before events are refused."""

    segment_bytes: int = 64 * 1024 * 1024
    segment_age_s: float = 3600.0
    file_mode: int = 0o600
    directory_bytes: int | None = None


class SyncFailed(OSError):
    """The line is in the chain and may be exported; whether it survives a loss of power is not known."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a segment ended before its time, and the bytes behind its last line; named in the next header."""

    segment: int
    offset: int
    length: int
    sha256: str
    reason: str

    def content(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class _Unsynced(NamedTuple):
    """Lines, both ends included, that a failed sync has left where nobody knows what became of them."""

    first_seq: int
    last_seq: int
    error: OSError


class StreamWriter:
    """The open end of a stream: it alone appends, for as long as its process lives.

    `description` is what every segment header says of the writer: resource, scope, exporters. With `fsync` a line is
    durable once `begin_sync`, the sync and `end_sync` have covered it; a segment that is left, and the header of the
    next one, are synced by their writer.

    Raises:
        OSError: the first segment could not be made; no lock is held, no file is left.
    """

    def __init__(
        self,
        files: StreamFiles,
        description: Mapping[str, Any],
        *,
        limits: Limits,
        durability: Durability,
        retire: Callable[[int], None],
    ) -> None:
        self.files = files
        self._description = description
        self._limits = limits
        self._fsync = durability is Durability.FSYNC
        self._retire = retire
        self._tag = b',"stream_id":"%b","seq":' % files.stream_id.encode()
        self._descriptor = -1
        self._distrusted = -1
        self._number = 0
        self._head = Head(0, b"", 0, 0)
        self._dirty = False
        self._sealed = False
        self._broken = False  # a sync of this segment failed: the kernel may have thrown pages away, and forget it
        self._sync: SegmentSync | None = None
        self._durable = Position()
        self._unsynced: list[_Unsynced] = []
        self._damage: Damage | None = None
        self._first_seq = 0
        self._started_ns = 0
        lock = FileLock.acquire(files.writer_lock, mode=limits.file_mode)
        if lock is None:
            raise OSError(errno.EAGAIN, "the writer lock of a new stream is held", str(files.writer_lock))
        self._lock = lock
        try:
            self._start_segment(time.time_ns())
        except BaseException:
            # Of an asynchronous exception too: an empty file, or a stream with a header and no end, would stay.
            with contextlib.suppress(OSError):
                files.segment(1).unlink()
            lock.release(remove=True)
            raise

    @property
    def head(self) -> Head:
        """The end of the chain, as it was at some moment of this call. Any thread."""
        return self._head

    @property
    def durable(self) -> Position | None:
        """With `fsync`: everything before this place is durable, but for what `sync_error` says. Else None.

        Nothing behind it may be exported. Any thread.
        """
        return self._durable if self._fsync else None

    def is_settled(self, seq: int) -> bool:
        """True when it is known whether a line is durable. Any thread."""
        return self._durable.seq >= seq or self.sync_error(seq) is not None

    def sync_error(self, seq: int) -> OSError | None:
        """Why it will never be known whether a line is durable. Any thread."""
        return next((each.error for each in self._unsynced if each.first_seq <= seq <= each.last_seq), None)

    @property
    def descriptor(self) -> int:
        """The descriptor of the segment that is written now."""
        return self._descriptor

    @property
    def number(self) -> int:
        """The number of the segment that is written now."""
        return self._number

    def write(self, body: bytes, observed_ns: int, *, system: bool = False) -> int:
        """Append one line and return its number in the stream. `system`: it is one of the journal's own.

        `body`: the event's JSON without its closing brace, with the two times as its last keys.

        Raises:
            OSError: nothing of the line is left in the chain.
        """
        if self._dirty:
            self._settle()
        if self._sealed or self._broken or self._head.offset >= self._limits.segment_bytes:
            self._start_segment(observed_ns)
        seq, prev_hash, offset, own = self._head
        seq += 1
        line = b'%b%b%d,"prev_hash":"%b"}\n' % (body, self._tag, seq, prev_hash)
        # The new head is made first, so that as little as can be stands between the write and the move: an
        # asynchronous exception in between leaves `_dirty` set, and the next call finds the head in the file.
        line_hash = sha256(memoryview(line)[:-1]).hexdigest().encode()
        head = Head(seq, line_hash, offset + len(line), own + system)
        self._dirty = True
        try:
            done = os.write(self._descriptor, line)
            if done != len(line):
                write_whole(self._descriptor, line[done:])
        except OSError:
            self._undo()
            raise
        self._head = head
        self._dirty = False
        return seq

    def write_system(self, kind: str, content: Mapping[str, Any], observed_ns: int) -> None:
        """Append one event of the journal itself, such as a gap.

        Raises:
            OSError: nothing of the line is left in the chain.
        """
        self.write(_timed(system_event(kind, content, observed_ns), observed_ns), observed_ns, system=True)

    def begin_sync(self) -> SegmentSync | None:
        """A sync of what is written now, to be run without the journal's lock; None when there is nothing to sync.

        Raises:
            OSError: the file was taken away, and could not be put back.
        """
        if self._descriptor < 0 or self._broken or self._durable.seq >= self._head.seq:
            return None
        if not self._is_linked():
            self._restore(time.time_ns())
        if self._sync is None:
            with contextlib.suppress(OSError):  # no descriptor is left for it: it is done at once
                self._sync = SegmentSync(self._descriptor, self._end())
                return self._sync
        self._sync_open()
        return None

    def end_sync(self, sync: SegmentSync) -> None:
        """What came of a sync is known: its lines are durable, or the segment is left."""
        if self._sync is not sync:
            return  # the writer left the segment meanwhile, and waited for it
        self._sync = None
        if sync.error is not None:
            self._break(sync.error)
        elif not self._broken:
            self._durable = max(self._durable, sync.end)

    def sync_at_once(self) -> None:
        """Every line of the open segment is durable, or known not to be; for a caller that has no thread for it.

        Raises:
            OSError: the file was taken away, and could not be put back.
        """
        if not self._is_linked():
            self._restore(time.time_ns())
        self._sync_open()

    def _sync_open(self) -> None:
        if (under_way := self._sync) is not None:
            if not under_way.wait():
                under_way.error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self.end_sync(under_way)
        if self._broken:
            self._break(OSError(errno.EINTR, "interrupted"))
        elif self._descriptor >= 0 and self._durable.seq < self._head.seq:
            # Until it is known: an exception that comes in between must not lead to a second try.
            self._broken = True
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                self._break(error)
                return
            self._durable = self._end()
            self._broken = False

    def _end(self) -> Position:
        return Position(self._number, self._head.offset, self._head.seq)

    def _break(self, error: OSError) -> None:
        """This segment is never synced again, and ends here. Its lines stay in the chain: a reader may have them."""
        self._broken = True
        last = self._unsynced[-1].last_seq if self._unsynced else 0
        if self._head.seq > max(last, self._durable.seq):
            self._unsynced.append(_Unsynced(max(last, self._durable.seq) + 1, self._head.seq, error))
        if self._damage is None:
            self._seal("fdatasync failed")

    def tend(self, observed_ns: int) -> None:
        """What is looked at once a second: is the file still ours and whole, and is it time for a new segment.

        Raises:
            OSError: what was found could not be repaired; it is tried again with the next look.
        """
        if self._dirty:
            self._settle()
        if not self._is_linked():
            self._restore(observed_ns)
        if os.fstat(self._descriptor).st_size != self._head.offset and not self._sealed:
            self._leave_tampered(observed_ns)
        if self._distrusted == self._descriptor and not self._sealed:
            self._seal("write-back failed")
        if self._broken:
            self._start_segment(observed_ns)  # what is not known to be durable is exported behind its header
        if self._is_old(observed_ns):
            self._sealed = True  # no line may follow here, even if the next segment cannot be made now
            self._start_segment(observed_ns)

    def distrust(self, descriptor: int) -> None:
        """A background sync of this segment failed: the next look ends it. Any thread."""
        self._distrusted = descriptor

    def keeps_its_lock(self) -> bool:
        """False when another process has taken the stream over, since somebody removed the lock file.

        A lock file that is only missing is made again.

        Raises:
            OSError: it could not be made again.
        """
        if self._lock.is_in_place():
            return True
        lock = FileLock.acquire(self.files.writer_lock, mode=self._limits.file_mode)
        if lock is None:
            return False
        former, self._lock = self._lock, lock
        former.release()
        return True

    def close(self) -> None:
        """The stream has ended: synced, and its writer lock released and removed."""
        if self._descriptor < 0:
            return
        if self._dirty:  # the last write was interrupted: no piece of a line stays behind
            with contextlib.suppress(OSError):
                self._settle()
        with contextlib.suppress(OSError):
            self._finish()
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(OSError):
            os.close(descriptor)
        self._lock.release(remove=True)

    def _finish(self) -> None:
        if self._fsync:
            self._sync_open()
        else:
            os.fdatasync(self._descriptor)

    def abandon(self) -> None:
        """Close this process's descriptors and touch nothing else: a forked child leaves the stream to its parent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        self._lock.abandon()

    def _settle(self) -> None:
        """Find the head again in the file, after an exception came between a write and the new head."""
        seq, line_hash, offset, system = self._head
        size = os.fstat(self._descriptor).st_size
        rest = os.pread(self._descriptor, max(0, size - offset), offset)
        tail = Tail.of(rest[:-1]) if rest.endswith(b"\n") and rest.count(b"\n") == 1 else None
        if tail is not None and tail.seq == seq + 1 and tail.prev_hash == line_hash.decode():
            self._head = Head(tail.seq, digest(rest[:-1]).encode(), size, system + is_system(rest))
            self._dirty = False
        else:
            self._undo()

    def _undo(self) -> None:
        """Nothing is behind the last line any more, or the segment is sealed."""
        offset = self._head.offset
        size = os.fstat(self._descriptor).st_size
        if size != offset and not self._sealed:
            if self._is_whole_until(offset):
                try:
                    os.ftruncate(self._descriptor, offset)
                except OSError:
                    self._seal("a failed write could not be undone")
            else:  # to cut here could cut lines that were acknowledged
                self._seal(_tampered(size, offset))
        self._dirty = False

    def _is_whole_until(self, offset: int) -> bool:
        """True when the last line of the chain ends here: nobody else wrote into the file or cut it."""
        start = max(0, offset - _LOOK_BACK_BYTES)
        before = os.pread(self._descriptor, offset - start, start)
        return before.endswith(b"\n") and digest(before[:-1].rpartition(b"\n")[2]).encode() == self._head.hash

    def _seal(self, reason: str) -> None:
        """No more lines in this segment; the next header names the bytes behind the last whole line."""
        self._sealed = True
        size = os.fstat(self._descriptor).st_size
        offset = min(self._head.offset, size)
        rest = b""
        with contextlib.suppress(OSError):
            rest = os.pread(self._descriptor, size - offset, offset)
        self._damage = Damage(self._number, offset, len(rest), sha256(rest).hexdigest(), reason)

    def _leave_tampered(self, observed_ns: int) -> None:
        size, offset, number = os.fstat(self._descriptor).st_size, self._head.offset, self._number
        reason = _tampered(size, offset)
        self._seal(reason)
        # How many of the missing lines were exported before is not known here, so none is counted as lost.
        gap = {"reason": reason, "segment": number, "lines": 0, "missing_bytes": max(0, offset - size)}
        self.write_system(GAP, gap, observed_ns)

    def _is_old(self, observed_ns: int) -> bool:
        # Either way from its start: a wall clock that was set back must not keep a segment open for years.
        age_ns = abs(observed_ns - self._started_ns)
        return age_ns >= self._limits.segment_age_s * 1e9 and self._head.seq > self._first_seq

    def _start_segment(self, observed_ns: int) -> None:
        if self._fsync:
            self._sync_open()  # or a loss of power could leave a header whose chain begins in lines that are gone
        number = self._number + 1
        path = self.files.segment(number)
        descriptor = open_segment(path, self._limits.file_mode)
        try:
            header = self._put_header(descriptor, number, observed_ns)
            if self._fsync:
                os.fdatasync(descriptor)
                sync_directory(self.files.directory)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)
            raise
        seq = self._head.seq + 1
        head = Head(seq, digest(header[:-1]).encode(), len(header), self._head.system + 1)
        retired = self._descriptor
        # No call from here on, so that an asynchronous exception finds all of it moved, or nothing.
        self._descriptor = descriptor
        self._number = number
        self._head = head
        self._durable = Position(number, head.offset, seq)
        self._damage = None
        self._sealed = self._broken = False
        self._distrusted = -1
        self._first_seq = seq
        self._started_ns = observed_ns
        if retired >= 0:
            self._retire(retired)

    def _put_header(self, descriptor: int, number: int, observed_ns: int) -> bytes:
        # An interrupted earlier attempt may have left a header here: it goes if it is not whole, and stays if it is,
        # because an exporter may have read it.
        left = os.pread(descriptor, _LOOK_BACK_BYTES, 0)
        tail = Tail.of(left[:-1]) if left.endswith(b"\n") and left.count(b"\n") == 1 else None
        if (
            tail is not None
            and (tail.stream_id, tail.seq) == (self.files.stream_id, self._head.seq + 1)
            and (tail.prev_hash or "") == self._head.hash.decode()
        ):
            return left
        os.ftruncate(descriptor, 0)
        header = self._header_line(number, observed_ns)
        write_whole(descriptor, header)
        return header

    def _header_line(self, number: int, observed_ns: int) -> bytes:
        content = {
            "format": FORMAT_VERSION,
            "stream_id": self.files.stream_id,
            "number": number,
            **self._description,
            **({"durability": str(Durability.FSYNC)} if self._fsync else {}),
            **({"damage": self._damage.content()} if self._damage else {}),
        }
        body = _timed(system_event(SEGMENT, content, observed_ns), observed_ns)
        chained = b',"prev_hash":"%b"' % self._head.hash if self._head.hash else b""
        return b"%b%b%d%b}\n" % (body, self._tag, self._head.seq + 1, chained)

    def _is_linked(self) -> bool:
        return is_at(self.files.segment(self._number), self._descriptor)

    def _restore(self, observed_ns: int) -> None:
        """The segment was removed, renamed or replaced while it was written: put it back from the open descriptor."""
        if self._fsync:
            self._sync_open()  # what is under way is of the file that is gone
        path = self.files.segment(self._number)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            path.rename(path.with_name(f"{path.name}.replaced-{observed_ns}"))
        copy = path.with_suffix(".restoring")
        copy.unlink(missing_ok=True)
        descriptor = open_segment(copy, self._limits.file_mode)
        try:
            # As much as is there: what was cut off before is found by the next look at the file's length.
            copy_bytes(self._descriptor, descriptor, self._head.offset)
            os.fdatasync(descriptor)
            copy.rename(path)
            if self._fsync:
                sync_directory(path.parent)
        except OSError:
            os.close(descriptor)
            copy.unlink(missing_ok=True)
            raise
        removed, self._descriptor = self._descriptor, descriptor
        os.close(removed)
        self.write_system(GAP, {"reason": "file removed", "segment": self._number, "lines": 0}, observed_ns)


def _tampered(size: int, offset: int) -> str:
    return "truncated by somebody else" if size < offset else "written by somebody else"


def _timed(event: bytes, observed_ns: int) -> bytes:
    return b'%b,"time_ns":%d,"observed_ns":%d' % (event[:-1], observed_ns, observed_ns)
