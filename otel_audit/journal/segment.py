"""The segment that is written now: its file, what repairs it, and how far its lines are durable.

Everything that is known of one segment is in `OpenSegment`, so that none of it is left when the stream goes on in the
next one. `Durable` keeps what came of the syncs of a stream, across its segments: how far it is durable, and of which
lines that will never be known. A `SegmentSync` is one `fdatasync` that runs while the writer goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from otel_audit.journal.cursor import Position
from otel_audit.journal.files import copy_bytes, is_at, open_segment, sync_directory, write_whole
from otel_audit.journal.line import Damage, Tail, digest, is_system
from otel_audit.journal.line_file import hash_between
from otel_audit.threads import new_lock

__all__ = ["Durable", "Head", "OpenSegment", "SegmentSync"]


_LOOK_BACK_BYTES: Final = 1 << 20  # more than the longest line
_CUT: Final = "truncated by somebody else"
_WRITTEN_TO: Final = "written by somebody else"


class Head(NamedTuple):
    """The end of the chain. One tuple, so that it moves in a single step or not at all.

    `seq` is the number of the last line, `offset` the end of it in the segment, `system` how many of the lines so far
    are the journal's own.
    """

    seq: int
    hash: bytes
    offset: int
    system: int


class OpenSegment:
    """The file of one segment, open until `close`. For the one thread that holds the journal's lock.

    `is_over`: no line may follow here; `damage`: why, if not for its age. `is_broken`: a sync of it failed, or was
    interrupted: the kernel may have thrown pages away, and forget it. `is_being_synced` while a background sync of it
    is under way; `sync_error`: why one failed; `is_synced`: the last one, behind which no line follows, did not. These
    are set by any thread.

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
        """The length of the file in bytes."""
        return os.fstat(self.descriptor).st_size

    def put_header(self, header: bytes, stream_id: str, head: Head) -> bytes:
        """The segment begins with this line behind that head; which is in the file now.

        Raises:
            OSError: a piece of it may be.
        """
        # An interrupted earlier attempt may have left a header here: it goes if it is not whole, and stays if it is,
        # because an exporter may have read it.
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
        """The end of the chain by the file, after an exception came between a write and the new head.

        Raises:
            OSError: it could not be found out.
        """
        size = self.size
        rest = os.pread(self.descriptor, max(0, size - head.offset), head.offset)
        tail = Tail.of(rest[:-1]) if rest.endswith(b"\n") and rest.count(b"\n") == 1 else None
        if tail is not None and tail.seq == head.seq + 1 and tail.prev_hash == head.hash.decode():
            return Head(tail.seq, digest(rest[:-1]).encode(), size, head.system + is_system(rest))
        self.undo(head)
        return head

    def undo(self, head: Head) -> None:
        """Nothing is behind the last line any more, or the segment is over.

        Raises:
            OSError: what is there could not be found out.
        """
        size = self.size
        if size == head.offset or self.is_over:
            return
        if not self._is_whole_until(head):  # to cut here could cut lines that were acknowledged
            self.seal(_touched(size, head.offset), head.offset)
            return
        try:
            os.ftruncate(self.descriptor, head.offset)
        except OSError:
            self.seal("a failed write could not be undone", head.offset)

    def _is_whole_until(self, head: Head) -> bool:
        """True when the last line of the chain ends here: nobody else wrote into the file or cut it."""
        start = max(0, head.offset - _LOOK_BACK_BYTES)
        before = os.pread(self.descriptor, head.offset - start, start)
        return before.endswith(b"\n") and digest(before[:-1].rpartition(b"\n")[2]).encode() == head.hash

    def seal(self, reason: str, end: int) -> None:
        """End the segment. The next header names the bytes behind its last whole line, which ends at this offset.

        Raises:
            OSError: the size of the file could not be found out.
        """
        self.is_over = True
        size = self.size
        offset = min(end, size)
        length, sha = 0, sha256().hexdigest()
        with contextlib.suppress(OSError):
            length, sha = hash_between(self.descriptor, offset, size)
        self.damage = Damage(self.number, offset, length, sha, reason)

    def is_touched(self, end: int) -> bool:
        """True when somebody else has cut the file or written to it: its last line should end at this offset.

        Raises:
            OSError: that could not be found out.
        """
        return not self.is_over and self.size != end

    def seal_if_touched(self, end: int) -> None:
        """No more lines here if somebody else has cut the file or written to it.

        Raises:
            OSError: as `seal`.
        """
        if self.is_touched(end):
            self.seal(_touched(self.size, end), end)

    @property
    def is_cut(self) -> bool:
        """True when it was sealed because somebody else had cut it."""
        return self.damage is not None and self.damage.reason == _CUT

    @property
    def is_written_to(self) -> bool:
        """True when it was sealed because somebody else had written to it."""
        return self.damage is not None and self.damage.reason == _WRITTEN_TO

    def is_linked(self) -> bool:
        """True while the open file is the one that others find."""
        return is_at(self.path, self.descriptor)

    def put_back(self, end: int, observed_ns: int, *, syncs_name: bool) -> None:
        """The file that was removed, renamed or replaced is there again, up to this offset, and open.

        Raises:
            OSError: it could not be; the file without a name is still open.
        """
        path = self.path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            path.rename(path.with_name(f"{path.name}.replaced-{observed_ns}"))
        copy = path.with_suffix(".restoring")
        copy.unlink(missing_ok=True)
        descriptor = open_segment(copy, self._mode)
        try:
            # As much as is there: what was cut off before is found by the next look at the file's length.
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
        """The file is closed, unless it is already. Raises as `os.close`."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # Of a journal that nobody closed, or where an asynchronous exception came before anybody knew of it.
        with contextlib.suppress(OSError):
            self.close()


def _touched(size: int, end: int) -> str:
    return _CUT if size < end else _WRITTEN_TO


_LOOK_S: Final = 0.1


class SegmentSync:
    """A sync of a segment that covers everything before `end`; under way until `run` has returned.

    It has a descriptor of its own, so that the writer may close its one meanwhile. Both share the open file, and with
    it the error of a failed write-back, which the kernel tells only once: nobody else may sync until this is over.

    Raises:
        OSError: the process has no descriptor left; nothing is under way.
    """

    def __init__(self, descriptor: int, end: Position) -> None:
        self.end = end
        self.error: OSError | None = None
        self._descriptor = os.dup(descriptor)
        # Not an Event: an asynchronous exception in `wait` could leave its lock locked, and `run` would never end.
        self._is_over = False
        self._under_way = new_lock()
        self._under_way.acquire()

    def run(self) -> None:
        """The sync is over; `error` says why it failed, if it did."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.error = error
        finally:
            self.abandon()
            self._is_over = True
            self._under_way.release()

    def abandon(self) -> None:
        """Close the descriptor; in a forked child, where nobody runs it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def wait(self) -> bool:
        """Wait until it is over. False when it never will be: the interpreter ends, and has stopped the thread."""
        while not self._is_over:
            if self._under_way.acquire(timeout=_LOOK_S):
                self._under_way.release()
            elif sys.is_finalizing():
                return False
        return True


class _Unsynced(NamedTuple):
    """Lines, both ends included, that a failed sync has left where nobody knows what became of them."""

    first_seq: int
    last_seq: int
    error: OSError


class Durable:
    """What is known of the lines of one stream that is synced by its writer.

    `position`: everything before it is durable, but for what `error` says. `end`, in every method: the end of what is
    written to the segment now. Changed only under the journal's lock; read by any thread.
    """

    def __init__(self) -> None:
        self.position = Position()
        self._unsynced: list[_Unsynced] = []
        self._under_way: SegmentSync | None = None

    def is_settled(self, seq: int) -> bool:
        """True when it is known whether a line is durable."""
        return self.position.seq >= seq or self.error(seq) is not None

    def error(self, seq: int) -> OSError | None:
        """Why it will never be known whether a line is durable."""
        return next((each.error for each in self._unsynced if each.first_seq <= seq <= each.last_seq), None)

    def reached(self, end: Position) -> None:
        """The header of a new segment is durable, and with it all that will ever be of the one before."""
        self.position = end

    def begin(self, segment: OpenSegment, end: Position) -> SegmentSync | None:
        """A sync of what is written now, to be run without the journal's lock; None when it was done at once."""
        if self._under_way is None:
            with contextlib.suppress(OSError):  # no descriptor is left for it
                self._under_way = SegmentSync(segment.descriptor, end)
                return self._under_way
        self.sync(segment, end)
        return None

    def end(self, sync: SegmentSync, segment: OpenSegment, end: Position) -> None:
        """What came of a sync is known: its lines are durable, or the segment is left."""
        if self._under_way is not sync:
            return  # the writer left the segment meanwhile, and waited for it
        self._under_way = None
        if sync.error is not None:
            self._break(segment, end, sync.error)
        elif not segment.is_broken:
            self.position = max(self.position, sync.end)

    def settle(self, segment: OpenSegment, end: Position) -> None:
        """Wait for the sync that is under way, if there is one, and take in what came of it."""
        if (under_way := self._under_way) is not None:
            if not under_way.wait():
                under_way.error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self.end(under_way, segment, end)

    def sync(self, segment: OpenSegment, end: Position) -> None:
        """Every line of the segment is durable, or known not to be."""
        self.settle(segment, end)
        if segment.is_broken:
            self._break(segment, end, OSError(errno.EINTR, "interrupted"))
        elif segment.descriptor >= 0 and self.position.seq < end.seq:
            # Until it is known: an exception that comes in between must not lead to a second try.
            segment.is_broken = True
            try:
                os.fdatasync(segment.descriptor)
            except OSError as error:
                self._break(segment, end, error)
                return
            self.position = end
            segment.is_broken = False

    def abandon(self) -> None:
        """In a forked child: close the descriptor of a sync that the parent runs."""
        if self._under_way is not None:
            self._under_way.abandon()

    def _break(self, segment: OpenSegment, end: Position, error: OSError) -> None:
        """This segment is never synced again, and ends here. Its lines stay in the chain: a reader may have them."""
        segment.is_broken = True
        known = max(self._unsynced[-1].last_seq if self._unsynced else 0, self.position.seq)
        if end.seq > known:
            self._unsynced.append(_Unsynced(known + 1, end.seq, error))
        if segment.damage is None:
            segment.seal("fdatasync failed", end.offset)
