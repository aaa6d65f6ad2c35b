"""How far a stream is durable: what came of its syncs, and of which lines that will never be known."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple

from otel_audit.journal.cursor import Position
from otel_audit.journal.open_segment import OpenSegment
from otel_audit.journal.segment_sync import SegmentSync

__all__ = ["Durable"]


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

    def sync(self, segment: OpenSegment, end: Position) -> None:
        """Every line of the segment is durable, or known not to be."""
        if (under_way := self._under_way) is not None:
            if not under_way.wait():
                under_way.error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self.end(under_way, segment, end)
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
