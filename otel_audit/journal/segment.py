"""The segment being written: its file, its repair, and the position up to which its lines are durable.

`OpenSegment` holds everything about one segment, so nothing of it remains when the stream goes on in the next one.
`Durable` keeps the results of the syncs of a stream across its segments: how far it is durable, and which lines can
never be known to be. A `SegmentSync` is one `fdatasync` that runs while the writer goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from otel_audit.journal.cursor import Position
from otel_audit.journal.files import copy_bytes, is_at, open_segment, sync_directory, write_whole
from otel_audit.journal.line import Damage, Tail, digest, is_system
from otel_audit.journal.line_file import hash_between
from otel_audit.threads import new_lock

__all__ = ["Durable", "Head", "OpenSegment", "SegmentSync"]


_LOOK_BACK_BYTES: Final = 1 << 20  # more than the longest line
_CUT: Final = "truncated by somebody else"
_WRITTEN_TO: Final = "written by somebody else"


class Head(msgspec.Struct, frozen=True, gc=False):
    """The end of the chain. It is one object, so that it changes in a single step or not at all.

    `seq` is the number of the last line, `offset` its end in the segment, and `system` how many of the lines so far are
    the journal's own.
    """

    seq: int
    hash: bytes
    offset: int
    system: int


class OpenSegment:
    """The file of one segment, open until `close`. For the one thread that holds the journal's lock.

    If `is_over`, no line may follow here, and `damage` says why, unless the reason is its age. If `is_broken`, a sync
    failed or was interrupted: the kernel may have dropped pages and will not report it again. `is_being_synced` is True
    while a background sync runs, `sync_error` says why one failed, and `is_synced` is True after the last one, which no
    line follows. Any thread may set these.

    Raises:
        OSError: the file can be neither opened nor made.
    """

    descriptor = -1

    def __init__(self, path: Path, number: int, mode: int) -> None:
        self.path = path
        self.number = number
        self.is_over = False
        self.is_broken = False
        self.is_being_synced = False
        self.is_synced = False
        self.sync_error: OSError | None = None
        self.damage: Damage | None = None
        self._mode = mode
        self.descriptor = open_segment(path, mode)

    @property
    def size(self) -> int:
        """Return the length of the file in bytes."""
        return os.fstat(self.descriptor).st_size

    def put_header(self, header: bytes, stream_id: str, head: Head) -> bytes:
        """Begin the segment with this line after that head, and return the head that is in the file now.

        Raises:
            OSError: a part of the line may be in the file.
        """
        # An interrupted earlier attempt may have left a header here. If it is whole it stays, because an exporter may
        # have read it.
        left = os.pread(self.descriptor, _LOOK_BACK_BYTES, 0)
        tail = Tail.of(left[:-1]) if left.endswith(b"\n") and left.count(b"\n") == 1 else None
        if (
            tail is not None
            and (tail.stream_id, tail.seq) == (stream_id, head.seq + 1)
            and (tail.prev_hash or "") == head.hash.decode()
        ):
            return left
        os.ftruncate(self.descriptor, 0)
        write_whole(self.descriptor, header)
        return header

    def settled(self, head: Head) -> Head:
        """Return the end of the chain according to the file, after an exception came between a write and the new head.

        Raises:
            OSError: the file cannot be read.
        """
        size = self.size
        rest = os.pread(self.descriptor, max(0, size - head.offset), head.offset)
        tail = Tail.of(rest[:-1]) if rest.endswith(b"\n") and rest.count(b"\n") == 1 else None
        if tail is not None and tail.seq == head.seq + 1 and tail.prev_hash == head.hash.decode():
            return Head(tail.seq, digest(rest[:-1]).encode(), size, head.system + is_system(rest))
        self.undo(head)
        return head

    def undo(self, head: Head) -> None:
        """Remove whatever follows the last line, or end the segment.

        Raises:
            OSError: the file cannot be read.
        """
        size = self.size
        if size == head.offset or self.is_over:
            return
        if not self._is_whole_until(head):  # truncating here could remove acknowledged lines
            self.seal(_touched(size, head.offset), head.offset)
            return
        try:
            os.ftruncate(self.descriptor, head.offset)
        except OSError:
            self.seal("a failed write could not be undone", head.offset)

    def _is_whole_until(self, head: Head) -> bool:
        """Return True if the last line of the chain ends here. Then nobody else wrote to the file or truncated it."""
        start = max(0, head.offset - _LOOK_BACK_BYTES)
        before = os.pread(self.descriptor, head.offset - start, start)
        return before.endswith(b"\n") and digest(before[:-1].rpartition(b"\n")[2]).encode() == head.hash

    def seal(self, reason: str, end: int) -> None:
        """End the segment. The next header names the bytes after its last whole line, which ends at this offset.

        Raises:
            OSError: the size of the file cannot be read.
        """
        self.is_over = True
        size = self.size
        offset = min(end, size)
        length, sha = 0, sha256().hexdigest()
        with contextlib.suppress(OSError):
            length, sha = hash_between(self.descriptor, offset, size)
        self.damage = Damage(self.number, offset, length, sha, reason)

    def is_touched(self, end: int) -> bool:
        """Return True if somebody else has truncated the file or written to it.

        Its last line should end at this offset.

        Raises:
            OSError: the file cannot be read.
        """
        return not self.is_over and self.size != end

    def seal_if_touched(self, end: int) -> None:
        """End the segment if somebody else has truncated the file or written to it.

        Raises:
            OSError: as `seal`.
        """
        if self.is_touched(end):
            self.seal(_touched(self.size, end), end)

    @property
    def is_cut(self) -> bool:
        """Return True if the segment was sealed because somebody else had truncated it."""
        return self.damage is not None and self.damage.reason == _CUT

    @property
    def is_written_to(self) -> bool:
        """Return True if the segment was sealed because somebody else had written to it."""
        return self.damage is not None and self.damage.reason == _WRITTEN_TO

    def is_linked(self) -> bool:
        """Return True while the open file is the one that others find at its path."""
        return is_at(self.path, self.descriptor)

    def put_back(self, end: int, observed_ns: int, *, syncs_name: bool) -> None:
        """Restore a file that was removed, renamed or replaced, up to this offset, and open it.

        Raises:
            OSError: it cannot be restored; the file without a name is still open.
        """
        path = self.path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            path.rename(path.with_name(f"{path.name}.replaced-{observed_ns}"))
        copy = path.with_suffix(".restoring")
        copy.unlink(missing_ok=True)
        descriptor = open_segment(copy, self._mode)
        try:
            # As much as there is. The next check of the file's length finds what was cut off before.
            copy_bytes(self.descriptor, descriptor, end)
            os.fdatasync(descriptor)
            copy.rename(path)
            if syncs_name:
                sync_directory(path.parent)
        except BaseException:
            os.close(descriptor)
            copy.unlink(missing_ok=True)
            raise
        removed, self.descriptor = self.descriptor, descriptor
        os.close(removed)

    def close(self) -> None:
        """Close the file, unless it is closed. Raises as `os.close`."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # If nobody closed the journal, or an asynchronous exception came before the object was stored.
        with contextlib.suppress(OSError):
            self.close()


def _touched(size: int, end: int) -> str:
    return _CUT if size < end else _WRITTEN_TO


_LOOK_S: Final = 0.1


class SegmentSync:
    """A sync of a segment that covers everything before `end`. It is under way until `run` has returned.

    It has a descriptor of its own, so that the writer may close its own meanwhile. Both share the open file, and with
    it the error of a failed write-back, which the kernel reports only once. So nobody else may sync until this is over.

    Raises:
        OSError: the process has no descriptor left; nothing is under way.
    """

    def __init__(self, descriptor: int, end: Position) -> None:
        self.end = end
        self.error: OSError | None = None
        self._descriptor = os.dup(descriptor)
        # Not an Event, since an asynchronous exception in `wait` could leave its lock locked, and `run` would never
        # end.
        self._is_over = False
        self._under_way = new_lock()
        self._under_way.acquire()

    def run(self) -> None:
        """Run the sync. Afterwards `error` says why it failed, if it did."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.error = error
        finally:
            self.abandon()
            self._is_over = True
            self._under_way.release()

    def abandon(self) -> None:
        """Close the descriptor. This is for a forked child, where nobody runs the sync."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def wait(self) -> bool:
        """Wait until the sync is over.

        Return False if it never will be, since the interpreter is ending and has stopped the thread.
        """
        while not self._is_over:
            if self._under_way.acquire(timeout=_LOOK_S):
                self._under_way.release()
            elif sys.is_finalizing():
                return False
        return True


class _Unsynced(NamedTuple):
    """Lines, both ends included, of which nobody knows whether a failed sync has stored them."""

    first_seq: int
    last_seq: int
    error: OSError


class Durable:
    """The durability of the lines of one stream that its writer syncs.

    Everything before `position` is durable, except as `error` says. In every method, `end` is the end of what is
    written to the segment now. Changed only under the journal's lock, and read by any thread.
    """

    def __init__(self) -> None:
        self.position = Position()
        self._unsynced: list[_Unsynced] = []
        self._under_way: SegmentSync | None = None

    def is_settled(self, seq: int) -> bool:
        """Return True if it is known whether a line is durable."""
        return self.position.seq >= seq or self.error(seq) is not None

    def error(self, seq: int) -> OSError | None:
        """Return why it will never be known whether a line is durable."""
        return next((each.error for each in self._unsynced if each.first_seq <= seq <= each.last_seq), None)

    def reached(self, end: Position) -> None:
        """Note that the header of a new segment is durable, which settles everything before it."""
        self.position = end

    def begin(self, segment: OpenSegment, end: Position) -> SegmentSync | None:
        """Return a sync of everything written so far, to be run without the journal's lock.

        None if it was done at once.
        """
        if self._under_way is None:
            with contextlib.suppress(OSError):  # the process has no descriptor left
                self._under_way = SegmentSync(segment.descriptor, end)
                return self._under_way
        self.sync(segment, end)
        return None

    def end(self, sync: SegmentSync, segment: OpenSegment, end: Position) -> None:
        """Take note of the result of a sync: its lines are durable, or the segment ends."""
        if self._under_way is not sync:
            return  # the writer has ended the segment meanwhile, and waited for the sync
        self._under_way = None
        if sync.error is not None:
            self._break(segment, end, sync.error)
        elif not segment.is_broken:
            self.position = max(self.position, sync.end)

    def settle(self, segment: OpenSegment, end: Position) -> None:
        """Wait for the sync that is under way, if there is one, and take note of its result."""
        if (under_way := self._under_way) is not None:
            if not under_way.wait():
                under_way.error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self.end(under_way, segment, end)

    def sync(self, segment: OpenSegment, end: Position) -> None:
        """Sync the segment. Afterwards it is known of each of its lines whether it is durable."""
        self.settle(segment, end)
        if segment.is_broken:
            self._break(segment, end, OSError(errno.EINTR, "interrupted"))
        elif segment.descriptor >= 0 and self.position.seq < end.seq:
            # Set until the result is known, so that an exception in between does not lead to a second attempt.
            segment.is_broken = True
            try:
                os.fdatasync(segment.descriptor)
            except OSError as error:
                self._break(segment, end, error)
                return
            self.position = end
            segment.is_broken = False

    def abandon(self) -> None:
        """Close the descriptor of a sync that the parent runs, in a forked child."""
        if self._under_way is not None:
            self._under_way.abandon()

    def _break(self, segment: OpenSegment, end: Position, error: OSError) -> None:
        """End this segment and never sync it again. Its lines stay in the chain, since a reader may have them."""
        segment.is_broken = True
        known = max(self._unsynced[-1].last_seq if self._unsynced else 0, self.position.seq)
        if end.seq > known:
            self._unsynced.append(_Unsynced(known + 1, end.seq, error))
        if segment.damage is None:
            segment.seal("fdatasync failed", end.offset)
