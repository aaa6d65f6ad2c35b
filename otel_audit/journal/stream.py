"""One stream while it is written: the head of its chain, the segment it is in, and the lock that makes it one writer's.

`otel_audit.journal.segment` says what is done when a write or the file fails, and what is known to be durable.

Not safe for threads by itself: `Journal` holds its lock around every call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from otel_audit.journal.cursor import Position, read_cursor
from otel_audit.journal.files import StreamFiles, sync_directory, write_whole
from otel_audit.journal.line import FORMAT_VERSION, GAP, SEGMENT, digest, system_body, system_event
from otel_audit.journal.locks import FileLock
from otel_audit.journal.reader import lines_behind
from otel_audit.journal.room import TRUNCATED
from otel_audit.journal.segment import Durable, Head, OpenSegment, SegmentSync
from otel_audit.settings import Durability

__all__ = ["Limits", "StreamWriter", "SyncFailed"]

_LEAVES_MAX: Final = 4096  # a burst that is longer is read back from the file


_new_tuple = tuple.__new__  # a NamedTuple is made in half the time without its own `__new__`


@dataclass(frozen=True, slots=True)
class Limits:
    """When a segment is full, who may read it, and how much the directory may hold before events are refused.

    `free_bytes`: the floor of free space, see `otel_audit.journal.room.Space`.
    """

    segment_bytes: int = 64 * 1024 * 1024
    segment_age_s: float = 3600.0
    file_mode: int = 0o600
    directory_bytes: int | None = None
    free_bytes: int | None = 0


class SyncFailed(OSError):
    """The line is in the chain and may be exported; whether it survives a loss of power is not known."""


class StreamWriter:
    """The open end of a stream: it alone appends, for as long as its process lives.

    `description` is what every segment header says of the writer: resource, scope, exporters. With `fsync` a line is
    durable once `begin_sync`, the sync and `end_sync` have covered it; a segment that is left, and the header of the
    next one, are synced by their writer. `retire` gets each segment that is left, to be synced and closed.

    `leaves` has the end of the chain behind each of the newest lines, for whoever builds the tree: one thread takes
    them from the left. Some may be missing: the lines are in the file.

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
        retire: Callable[[OpenSegment], None],
    ) -> None:
        self.files = files
        self._description = description
        self._limits = limits
        self._segment_bytes = limits.segment_bytes
        self._durability = durability
        self._fsync = durability is Durability.FSYNC
        self._retire = retire
        self._tag = b',"stream_id":"%b","seq":' % files.stream_id.encode()
        self._head = Head(0, b"", 0, 0)
        self._dirty = False
        self._own: list[int] = []  # the numbers of the journal's own lines in the open segment
        self._owed: list[Mapping[str, Any]] = []  # gap lines to be written
        self.anchor: Mapping[str, Any] | None = None  # what the next header says of the ledger; any thread
        self.gone = 0  # events that nobody can read any more, of those that no exporter had; any thread
        self.leaves: deque[Head] = deque(maxlen=0 if durability is Durability.MEMORY else _LEAVES_MAX)
        self._durable = Durable()
        lock = FileLock.acquire(files.writer_lock, mode=limits.file_mode)
        if lock is None:
            raise OSError(errno.EAGAIN, "the writer lock of a new stream is held", str(files.writer_lock))
        self._lock = lock
        now_ns = time.time_ns()
        try:
            segment, head = self._next_segment(1, None, now_ns)
        except BaseException:
            # Of an asynchronous exception too: an empty file, or a stream with a header and no end, would stay.
            with contextlib.suppress(OSError):
                files.segment(1).unlink()
            lock.release(remove=True)
            raise
        self._segment, self._head = segment, head
        self._first_seq, self._started_ns, self._own = head.seq, now_ns, [head.seq]
        self._durable.reached(self._end())
        self.leaves.append(head)

    @property
    def head(self) -> Head:
        """The end of the chain, as it was at some moment of this call. Any thread."""
        return self._head

    @property
    def durable(self) -> Position | None:
        """With `fsync`: everything before this place is durable, but for what `sync_error` says. Else None.

        Nothing behind it may be exported. Any thread.
        """
        return self._durable.position if self._fsync else None

    def is_settled(self, seq: int) -> bool:
        """True when it is known whether a line is durable. Any thread."""
        return self._durable.is_settled(seq)

    def sync_error(self, seq: int) -> OSError | None:
        """Why it will never be known whether a line is durable. Any thread."""
        return self._durable.error(seq)

    @property
    def segment(self) -> OpenSegment:
        """The segment that is written now."""
        return self._segment

    def write(self, event: bytes, time_ns: int, observed_ns: int, *, system: bool = False) -> int:
        """Append one line and return its number in the stream. `system`: it is one of the journal's own.

        `event` is a JSON object.

        Raises:
            OSError: nothing of the line is left in the chain.
        """
        if self._dirty:
            self._settle()
        seq, prev_hash, offset, own = self._head
        segment = self._segment
        if segment.is_over or segment.is_broken or offset >= self._segment_bytes:
            self._start_segment(observed_ns)
            seq, prev_hash, offset, own = self._head
            segment = self._segment
        seq += 1
        line = b'%b,"time_ns":%d,"observed_ns":%d%b%d,"prev_hash":"%b"}\n' % (
            event[:-1],
            time_ns,
            observed_ns,
            self._tag,
            seq,
            prev_hash,
        )
        # The new head is made first, so that as little as can be stands between the write and the move: an
        # asynchronous exception in between leaves `_dirty` set, and the next call finds the head in the file.
        line_hash = sha256(memoryview(line)[:-1]).hexdigest().encode()
        head = _new_tuple(Head, (seq, line_hash, offset + len(line), own + system))
        self._dirty = True
        try:
            done = os.write(segment.descriptor, line)
            if done != len(line):
                write_whole(segment.descriptor, line[done:])
        except OSError:
            segment.undo(self._head)
            self._dirty = False
            raise
        self._head = head
        self._dirty = False
        self.leaves.append(head)  # last: what interrupts this leaves a line out, but never one in that is not there
        return seq

    def write_system(self, kind: str, content: Mapping[str, Any], observed_ns: int) -> None:
        """Append one event of the journal itself, such as a gap.

        Raises:
            OSError: nothing of the line is left in the chain.
        """
        event = system_event(kind, content, observed_ns)
        self._own.append(self.write(event, observed_ns, observed_ns, system=True))

    def begin_sync(self) -> SegmentSync | None:
        """A sync of what is written now, to be run without the journal's lock; None when there is nothing to sync.

        Raises:
            OSError: the file was taken away, and could not be put back.
        """
        segment = self._segment
        if segment.descriptor < 0 or segment.is_broken or self._durable.position.seq >= self._head.seq:
            return None
        if not segment.is_linked():
            self._restore(time.time_ns())
        return self._durable.begin(self._segment, self._end())

    def end_sync(self, sync: SegmentSync) -> None:
        """What came of a sync is known: its lines are durable, or the segment is left."""
        self._durable.end(sync, self._segment, self._end())

    def sync_at_once(self) -> None:
        """Every line of the open segment is durable, or known not to be; for a caller that has no thread for it.

        Raises:
            OSError: the file was taken away, and could not be put back.
        """
        if not self._segment.is_linked():
            self._restore(time.time_ns())
        self._sync_open()

    def _sync_open(self) -> None:
        self._durable.sync(self._segment, self._end())

    def _end(self) -> Position:
        return Position(self._segment.number, self._head.offset, self._head.seq)

    def tend(self, observed_ns: int) -> None:
        """What is looked at once a second: is the file still ours and whole, and is it time for a new segment.

        Raises:
            OSError: what was found could not be repaired; it is tried again with the next look.
        """
        if self._dirty:
            self._settle()
        if not self._segment.is_linked():
            self._restore(observed_ns)
        segment = self._segment
        if segment.is_distrusted and not segment.is_over:
            segment.seal("write-back failed", self._head.offset)
        if segment.is_broken or segment.is_touched(self._head.offset):
            self._start_segment(observed_ns)  # what is not known to be durable is exported behind its header
        if self._is_old(observed_ns):
            self._segment.is_over = True  # no line may follow here, even if the next segment cannot be made now
            self._start_segment(observed_ns)
        self._tell_owed(observed_ns)

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

    def finish(self) -> None:
        """The last line is written and synced. Its writer lock is still held, until `let_go`. May be called again."""
        if self._segment.descriptor >= 0:
            with contextlib.suppress(OSError):
                self._finish()
            self._retire(self._segment)

    def let_go(self, *, remove: bool = True) -> None:
        """The stream has ended: nobody holds its writer lock. May be called again.

        `remove`: the lock file is gone too. One that is there and free says that somebody has to tell of the end.
        """
        self._lock.release(remove=remove)

    def _finish(self) -> None:
        with contextlib.suppress(OSError):
            if self._dirty:  # the last write was interrupted: no piece of a line stays behind
                self._settle()
            # A directory that was removed as a whole is not made again behind the back of who removed it.
            if self.files.directory.exists() and not self._segment.is_linked():
                self._restore(time.time_ns())
        if self._fsync:
            self._sync_open()

    def leave(self) -> None:
        """Let go of the stream where it is, and write nothing: another process with the same memory may go on with it.

        With `fsync` what was written is synced first, for those who wait for it.
        """
        with contextlib.suppress(OSError):
            if self._fsync:
                self._sync_open()
        self.abandon()

    def abandon(self) -> None:
        """Close this process's descriptors and touch nothing else: a forked child leaves the stream to its parent."""
        self._segment.close()
        self._durable.abandon()
        self._lock.abandon()

    def _settle(self) -> None:
        self._head = self._segment.settled(self._head)
        self._dirty = False

    def _is_old(self, observed_ns: int) -> bool:
        # Either way from its start: a wall clock that was set back must not keep a segment open for years.
        age_ns = abs(observed_ns - self._started_ns)
        return age_ns >= self._limits.segment_age_s * 1e9 and self._head.seq > self._first_seq

    def _start_segment(self, observed_ns: int) -> None:
        former = self._segment
        was_removed = not former.is_linked()
        if was_removed:  # since the last look, and nobody will look again
            self._put_back(observed_ns)
        if self._fsync:
            self._sync_open()  # or a loss of power could leave a header whose chain begins in lines that are gone
        former.seal_if_touched(self._head.offset)
        lost = self._lost_in(former) if former.is_cut else 0
        gaps = [*([_removed(former)] if was_removed else []), *self._touched(former, lost)]
        segment, head = self._next_segment(former.number + 1, former, observed_ns)
        # No call from here on, so that an asynchronous exception finds all of it moved, or nothing.
        self._segment = segment
        self._head = head
        self._first_seq = head.seq
        self._started_ns = observed_ns
        self._own = [head.seq]
        self._owed += gaps
        self.gone += lost
        # What is not come to any more does no harm: the next sync covers the header, and the former file is closed.
        self._durable.reached(self._end())
        self.leaves.append(head)
        self._retire(former)
        self._tell_owed(observed_ns)

    def _touched(self, segment: OpenSegment, lost: int) -> list[Mapping[str, Any]]:
        """The gap line that says what somebody else did to a segment that is left, if it was touched."""
        if segment.is_cut:
            missing_bytes = max(0, self._head.offset - segment.size)
            return [{"reason": TRUNCATED, "segment": segment.number, "lines": lost, "missing_bytes": missing_bytes}]
        if segment.is_written_to:
            return [{"reason": "written by somebody else", "segment": segment.number, "lines": 0}]
        return []

    def _lost_in(self, segment: OpenSegment) -> int:
        """How many events of a segment that was cut can be read no more, of those that no exporter had."""
        # Reads what is left behind the furthest exporter under the journal's lock: a second's lines, or a backlog.
        furthest = Position(segment.number, 0, self._first_seq - 1)
        with contextlib.suppress(OSError):
            reached = (progress.position for progress in read_cursor(self.files.cursor, listed=False)[0].values())
            furthest = max([furthest, *reached], key=lambda position: position.seq)
        lost = self._head.seq - furthest.seq
        lost -= sum(seq > furthest.seq for seq in self._own)
        return max(0, lost - sum(not line.system for line in lines_behind(self.files, furthest)))

    def _tell_owed(self, observed_ns: int) -> None:
        while self._owed:
            gap = self._owed.pop(0)  # before it is written, which may start another segment and come here again
            try:
                self.write_system(GAP, gap, observed_ns)
            except OSError:
                self._owed.insert(0, gap)
                raise

    def _next_segment(self, number: int, former: OpenSegment | None, observed_ns: int) -> tuple[OpenSegment, Head]:
        """A segment that begins behind the head, and the head behind its header.

        Raises:
            OSError: it could not be made; no file is left.
        """
        segment = OpenSegment(self.files.segment(number), number, self._limits.file_mode)
        try:
            header = segment.put_header(self._header(number, former, observed_ns), self.files.stream_id, self._head)
            if self._fsync:
                os.fdatasync(segment.descriptor)
                sync_directory(self.files.directory)
        except OSError:
            with contextlib.suppress(OSError):
                segment.path.unlink()
            segment.close()
            raise
        return segment, Head(self._head.seq + 1, digest(header[:-1]).encode(), len(header), self._head.system + 1)

    def _header(self, number: int, former: OpenSegment | None, observed_ns: int) -> bytes:
        damage = None if former is None else former.damage
        content = {
            "format": FORMAT_VERSION,
            "stream_id": self.files.stream_id,
            "number": number,
            **self._description,
            **({} if self.anchor is None else {"ledger": self.anchor}),
            **({} if self._durability is Durability.OS else {"durability": str(self._durability)}),
            "system_lines": self._head.system,
            **({"damage": damage._asdict()} if damage else {}),
        }
        chained = b',"prev_hash":"%b"' % self._head.hash if self._head.hash else b""
        return b"%b%b%d%b}\n" % (system_body(SEGMENT, content, observed_ns), self._tag, self._head.seq + 1, chained)

    def _restore(self, observed_ns: int) -> None:
        """The segment was removed, renamed or replaced while it was written: put it back from the open descriptor."""
        self._put_back(observed_ns)
        self._owed.append(_removed(self._segment))
        self._tell_owed(observed_ns)

    def _put_back(self, observed_ns: int) -> None:
        # What is under way is of the file that is gone. That one is not synced again: its lines would count as durable,
        # and be acknowledged, before they are in a file that somebody finds.
        self._durable.settle(self._segment, self._end())
        self._segment.put_back(self._head.offset, observed_ns, syncs_name=self._fsync)


def _removed(segment: OpenSegment) -> Mapping[str, Any]:
    return {"reason": "file removed", "segment": segment.number, "lines": 0}
