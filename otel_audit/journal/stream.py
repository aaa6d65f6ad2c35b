"""A stream while it is written: the head of its chain, its open segment, and the lock that keeps other writers out.

`otel_audit.journal.segment` deals with failed writes and damaged files, and knows which lines are durable.

This code is not thread-safe by itself. `Journal` holds its lock around every call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from otel_audit.journal.cursor import Position, read_cursor
from otel_audit.journal.files import StreamFiles, sync_directory, write_whole
from otel_audit.journal.line import FORMAT_VERSION, GAP, SEGMENT, digest, system_body, system_event
from otel_audit.journal.locks import FileLock
from otel_audit.journal.reader import lines_behind
from otel_audit.journal.room import TRUNCATED
from otel_audit.journal.segment import Durable, Head, OpenSegment, SegmentSync
from otel_audit.settings import Durability

__all__ = ["Limits", "StreamWriter", "SyncFailed"]

_LEAVES_MAX: Final = 4096  # in a longer burst, the oldest are read back from the file


class Limits(msgspec.Struct, frozen=True):
    """The limits of a segment, its file mode, and the size at which the directory refuses events.

    `free_bytes` is the floor of free space: see `otel_audit.journal.room.Space`.
    """

    segment_bytes: int = 64 * 1024 * 1024
    segment_age_s: float = 3600.0
    file_mode: int = 0o600
    directory_bytes: int | None = None
    free_bytes: int | None = 0


class SyncFailed(OSError):
    """The line is in the chain and may be exported, but a loss of power could still take it."""


class StreamWriter:
    """The only writer of a stream, for as long as its process lives.

    `description` goes into every segment header and describes the writer: resource, scope, exporters. With `fsync`, a
    line is durable once `begin_sync`, the sync and `end_sync` have covered it. When the writer moves to a new segment,
    it syncs the old one and the new header itself. `retire` receives each old segment, to sync and close it.

    `leaves` holds the head of the chain after each of the newest lines. The thread that builds the tree takes them from
    the left. Some may be missing, and can be read from the file.

    Raises:
        BlockingIOError: somebody who looks for streams without a writer had the lock for a moment, after its file was
            made and before it was locked. No file is left; a stream of another name can be made at once.
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
        self._owed: list[Mapping[str, Any]] = []  # gap lines still to be written
        self.anchor: Mapping[str, Any] | None = None  # the ledger's note for the next header; set by any thread
        self.gone = 0  # events that no exporter had and that can no longer be read; any thread
        self.leaves: deque[Head] = deque(maxlen=0 if durability is Durability.MEMORY else _LEAVES_MAX)
        self._durable = Durable()
        self._left: dict[int, OpenSegment] = {}  # earlier segments, until it is known what came of their syncs
        lock = FileLock.acquire(files.writer_lock, mode=limits.file_mode)
        if lock is None:
            files.writer_lock.unlink(missing_ok=True)
            raise BlockingIOError(errno.EAGAIN, "the writer lock of a new stream is held", str(files.writer_lock))
        self._lock = lock
        now_ns = time.time_ns()
        try:
            segment, head = self._next_segment(1, None, now_ns)
        except BaseException:
            # After an asynchronous exception too: otherwise an empty file, or a stream without an end, would stay.
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
        """The end of the chain at some moment during this call. Any thread."""
        return self._head

    @property
    def durable(self) -> Position | None:
        """With `fsync`, the position before which all lines are durable, unless `sync_error` gives an error. Else None.

        Lines after it must not be exported. Any thread.
        """
        return self._durable.position if self._fsync else None

    def is_settled(self, seq: int) -> bool:
        """Return True once it is known whether a line is durable. Any thread."""
        return self._durable.is_settled(seq)

    def sync_error(self, seq: int) -> OSError | None:
        """Return the error because of which it will never be known whether a line is durable. Any thread."""
        return self._durable.error(seq)

    @property
    def is_being_synced(self) -> bool:
        """True while a background sync is under way, of which nobody knows yet what will come. Any thread."""
        return any(segment.is_being_synced for segment in [*self._left.values(), self._segment])

    def is_synced(self, number: int) -> bool:
        """Return True if the writer has synced all that will ever be in this segment. Any thread."""
        segment = self._segment if number == self._segment.number else self._left.get(number)
        return segment is None or segment.is_synced

    def unvouched(self) -> OSError | None:
        """Return the error of a sync that leaves lines of unknown durability, unless a later header tells of it.

        Nobody may sign a head of these lines: another sync of the same file would not fail again. Any thread.
        """
        if self._fsync:
            return self._durable.error(self._head.seq)
        left = (segment.sync_error for segment in self._left.values() if segment.damage is None)
        return next((error for error in [self._segment.sync_error, *left] if error is not None), None)

    @property
    def segment(self) -> OpenSegment:
        """The segment that is being written."""
        return self._segment

    def write(self, event: bytes, time_ns: int, observed_ns: int, *, system: bool = False) -> int:
        """Append one line and return its number in the stream. `system` marks one of the journal's own lines.

        `event` is a JSON object.

        Raises:
            OSError: no part of the line is left in the chain.
        """
        if self._dirty:
            self._settle()
        before, segment = self._head, self._segment
        if segment.is_over or segment.is_broken or before.offset >= self._segment_bytes:
            self._start_segment(observed_ns)
            before, segment = self._head, self._segment
        seq = before.seq + 1
        line = b'%b,"time_ns":%d,"observed_ns":%d%b%d,"prev_hash":"%b"}\n' % (
            event[:-1],
            time_ns,
            observed_ns,
            self._tag,
            seq,
            before.hash,
        )
        # The new head is made first, to keep the time between the write and the update of the state short. After an
        # asynchronous exception in between, `_dirty` stays set, and the next call rebuilds the head from the file.
        line_hash = sha256(line[:-1]).hexdigest().encode()
        head = Head(seq, line_hash, before.offset + len(line), before.system + system)
        self._dirty = True
        try:
            done = os.write(segment.descriptor, line)
            if done != len(line):
                write_whole(segment.descriptor, line[done:])
        except OSError:
            segment.undo(before)
            self._dirty = False
            raise
        self._head = head
        self._dirty = False
        self.leaves.append(head)  # last: an interruption may omit a leaf, but never adds one that has no line
        return seq

    def write_system(self, kind: str, content: Mapping[str, Any], observed_ns: int) -> None:
        """Append one event of the journal itself, such as a gap.

        Raises:
            OSError: no part of the line is left in the chain.
        """
        event = system_event(kind, content, observed_ns)
        self._own.append(self.write(event, observed_ns, observed_ns, system=True))

    def begin_sync(self) -> SegmentSync | None:
        """Return a sync of all lines so far, to be run without the journal's lock, or None if there is nothing to sync.

        Raises:
            OSError: the file was removed and could not be restored.
        """
        segment = self._segment
        if segment.descriptor < 0 or segment.is_broken or self._durable.position.seq >= self._head.seq:
            return None
        if not segment.is_linked():
            self._restore(time.time_ns())
        return self._durable.begin(self._segment, self._end())

    def end_sync(self, sync: SegmentSync) -> None:
        """Take note of the result of a sync: its lines are durable, or the segment is closed and a new one begins."""
        self._durable.end(sync, self._segment, self._end())

    def sync_at_once(self) -> None:
        """Sync the open segment in the calling thread. Afterwards it is known whether each line is durable.

        Raises:
            OSError: the file was removed and could not be restored.
        """
        if not self._segment.is_linked():
            self._restore(time.time_ns())
        self._sync_open()

    def _sync_open(self) -> None:
        self._durable.sync(self._segment, self._end())

    def _end(self) -> Position:
        return Position(self._segment.number, self._head.offset, self._head.seq)

    def tend(self, observed_ns: int) -> None:
        """Check, once a second, that the file is still ours and whole, and start a new segment if one is due.

        Raises:
            OSError: a fault could not be repaired. The next check tries again.
        """
        if self._dirty:
            self._settle()
        if not self._segment.is_linked():
            self._restore(observed_ns)
        segment = self._segment
        if segment.sync_error is not None and not segment.is_over:
            segment.seal("write-back failed", self._head.offset)
        if segment.is_broken or segment.is_touched(self._head.offset):
            self._start_segment(observed_ns)  # its header must precede the export of lines of unknown durability
        if self._is_old(observed_ns):
            self._segment.is_over = True  # no line may follow here, even if the next segment cannot be made yet
            self._start_segment(observed_ns)
        self._tell_owed(observed_ns)

    def keeps_its_lock(self) -> bool:
        """Return False if somebody removed the lock file and another process has taken over the stream.

        If the lock file is missing but nobody has taken over, it is made again.

        Raises:
            OSError: the lock file could not be made again.
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
        """End the stream: write and sync its last line. `let_go` releases the writer lock. May be called again."""
        if self._segment.descriptor >= 0:
            with contextlib.suppress(OSError):
                self._finish()
            self._retire(self._segment)

    def let_go(self, *, remove: bool = True) -> None:
        """Release the writer lock of a finished stream, and remove its file if `remove`. May be called again.

        A lock file that exists and is free tells other processes that the ledger still lacks the end of the stream.
        """
        self._lock.release(remove=remove)

    def _finish(self) -> None:
        with contextlib.suppress(OSError):
            if self._dirty:  # the last write was interrupted: leave no piece of a line behind
                self._settle()
            # Somebody who removed the whole directory does not expect it to come back.
            if self.files.directory.exists() and not self._segment.is_linked():
                self._restore(time.time_ns())
        if self._fsync:
            self._sync_open()

    def leave(self) -> None:
        """Abandon the stream without writing, since another process with the same memory may continue it.

        With `fsync`, sync the open segment first, for the callers that wait for it.
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
        # `abs`: a wall clock that was set back must not keep a segment open for years.
        age_ns = abs(observed_ns - self._started_ns)
        return age_ns >= self._limits.segment_age_s * 1e9 and self._head.seq > self._first_seq

    def _start_segment(self, observed_ns: int) -> None:
        former = self._segment
        was_removed = not former.is_linked()
        if was_removed:  # since the last check, and there will be no other
            self._put_back(observed_ns)
        if self._fsync:
            self._sync_open()  # or a loss of power could leave a header that chains to lines that are gone
        former.seal_if_touched(self._head.offset)
        lost = self._lost_in(former) if former.is_cut else 0
        gaps = [*([_removed(former)] if was_removed else []), *self._touched(former, lost)]
        segment, head = self._next_segment(former.number + 1, former, observed_ns)
        left = {each.number: each for each in [*self._left.values(), former] if self._is_worth_keeping(each)}
        # No calls in this group, so that an asynchronous exception finds either all of the state moved or none of it.
        self._left = left
        self._segment = segment
        self._head = head
        self._first_seq = head.seq
        self._started_ns = observed_ns
        self._own = [head.seq]
        self._owed += gaps
        self.gone += lost
        # An exception may skip these calls without harm: the next sync covers the header, and the old file gets closed.
        self._durable.reached(self._end())
        self.leaves.append(head)
        self._retire(former)
        self._tell_owed(observed_ns)

    def _touched(self, segment: OpenSegment, lost: int) -> list[Mapping[str, Any]]:
        """Return a gap line that reports how somebody changed the old segment, or none if nobody did."""
        if segment.is_cut:
            missing_bytes = max(0, self._head.offset - segment.size)
            return [{"reason": TRUNCATED, "segment": segment.number, "lines": lost, "missing_bytes": missing_bytes}]
        if segment.is_written_to:
            return [{"reason": "written by somebody else", "segment": segment.number, "lines": 0}]
        return []

    def _is_worth_keeping(self, left: OpenSegment) -> bool:
        """Return True if it matters what will come of the background sync of a segment that was left."""
        is_told = left.sync_error is not None and left.damage is not None  # by the header that follows
        return self._durability is Durability.OS and not left.is_synced and not is_told

    def _lost_in(self, segment: OpenSegment) -> int:
        """Return how many events that no exporter had can no longer be read from a segment that was cut."""
        # This reads all lines after the furthest exporter under the journal's lock: those of a second, or a backlog.
        furthest = Position(segment.number, 0, self._first_seq - 1)
        with contextlib.suppress(OSError):
            reached = (progress.position for progress in read_cursor(self.files.cursor, listed=False)[0].values())
            furthest = max([furthest, *reached], key=lambda position: position.seq)
        lost = self._head.seq - furthest.seq
        lost -= sum(seq > furthest.seq for seq in self._own)
        return max(0, lost - sum(not line.system for line in lines_behind(self.files, furthest)))

    def _tell_owed(self, observed_ns: int) -> None:
        while self._owed:
            gap = self._owed.pop(0)  # before writing it, which may start another segment and come here again
            try:
                self.write_system(GAP, gap, observed_ns)
            except OSError:
                self._owed.insert(0, gap)
                raise

    def _next_segment(self, number: int, former: OpenSegment | None, observed_ns: int) -> tuple[OpenSegment, Head]:
        """Return a segment that continues the chain from the head, and the head after its header.

        Raises:
            OSError: the segment could not be made; no file is left.
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
        """Restore, from the open descriptor, a segment that was removed, renamed or replaced while it was written."""
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
