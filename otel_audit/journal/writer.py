"""The end of a journal at which lines are added: the open stream, the room for it, and the losses.

A stream is opened when there is something to write, tended once a second, and abandoned if its lock was lost. A loss is
recorded before anything else is written.

This code is not thread-safe by itself. `Journal` holds its lock around every call.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from otel_audit import ids
from otel_audit.errors import AuditUnavailable, JournalFull, JournalUnwritable, remedy_of
from otel_audit.journal.background import Background
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import GAP
from otel_audit.journal.room import Limited, Losses, Room, is_full, reason_of
from otel_audit.journal.stream import Limits, StreamWriter
from otel_audit.settings import Durability

__all__ = ["WritingEnd"]

_TEND_NS: Final = 1_000_000_000
_TELL_NS: Final = 60_000_000_000  # while events are refused, gap lines are this far apart, since the reserve is small
_NEW_STREAM_TRIES: Final = 100
_PLACE_BYTES: Final = 208  # added to each event by the stream: two times, its id, a number, the hash of the line before


class WritingEnd:
    """The writing end of one process. `describe` returns the description of the writer for each segment header.

    `lock`, `inside` and `look_after` belong to the threads, see `Background`. For `ask_for_room` see `Room`.
    """

    def __init__(
        self,
        directory: Path,
        describe: Callable[[], Mapping[str, Any]],
        *,
        limits: Limits,
        durability: Durability,
        lock: threading.Lock,
        inside: set[int],
        look_after: weakref.WeakMethod[Callable[[], None]],
        ask_for_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self.directory = directory
        self.describe = describe
        self.losses = Losses()
        self.room = Room(directory, limits.directory_bytes, floor_bytes=limits.free_bytes, ask_for_room=ask_for_room)
        self.stream: StreamWriter | None = None
        self.is_unannounced = False  # True until `on_open` is called for the open stream
        self._limits = limits
        self._durability = durability
        self._lock = lock
        self._inside = inside
        self._look_after = look_after
        self.background = self._new_background()
        self._appended_before = self._gone_before = 0  # events in streams that have ended
        self._is_ending = False
        self.finished: deque[StreamWriter] = deque()  # streams whose writer lock is still to be released
        self._tended_ns = 0
        self._told_ns = 0

    def _new_background(self) -> Background:
        return Background(
            self.directory, self._durability, lock=self._lock, inside=self._inside, look_after=self._look_after
        )

    @property
    def events(self) -> int:
        """Return the number of events of the application that were written. Any thread."""
        stream = self.stream
        return self._appended_before + (_events(stream) if stream else 0)

    @property
    def gone(self) -> int:
        """Return the number of these that can no longer be read and that no exporter had. Any thread."""
        stream = self.stream
        return self._gone_before + (stream.gone if stream else 0)

    def write(self, event: bytes, time_ns: int, observed_ns: int, is_vital: bool) -> tuple[int, StreamWriter]:
        """Append one line. Return its number and its stream.

        For `is_vital` see `Journal.append`.

        Raises:
            JournalFull: there is no room; nothing was written, and the loss is counted.
            JournalUnwritable: nothing was written, for another reason; the loss is counted.
        """
        stream, losses = self.stream, self.losses
        try:
            # Compared in both directions, so that a wall clock that was set back does not stop the checks for years.
            if stream is None or (losses.total and losses) or not 0 <= observed_ns - self._tended_ns < _TEND_NS:
                stream = self.ready(observed_ns)
            if not self.room.is_scarce:
                return stream.write(event, time_ns, observed_ns), stream
            self.room.check(is_vital=is_vital)
            seq = stream.write(event, time_ns, observed_ns)
            self.room.added(len(event) + _PLACE_BYTES)
            return seq, stream
        except OSError as error:
            lost = self.lost(reason_of(error), observed_ns, error)
            self._make_room(error, observed_ns)
            raise lost from error

    def write_waiting(self, waiting: deque[tuple[bytes, int, int]], stream: StreamWriter) -> None:
        """Write the deferred events in their order. If the disk refuses, they stay deferred."""
        with contextlib.suppress(OSError):
            self.room.check(is_vital=True)  # vital, since they were accepted
            while waiting:
                # Written before it is taken out, so that an exception in between may write it twice, but never loses
                # it.
                stream.write(*waiting[0])
                waiting.popleft()

    def ready(self, observed_ns: int) -> StreamWriter:
        """Return the open stream after tending it. Open one if there is none, and record any loss first.

        Raises:
            OSError: no stream can be opened, or a fault cannot be repaired now.
        """
        if self._is_ending:
            self.end()
        stream = self.stream or self._open()
        if not 0 <= observed_ns - self._tended_ns < _TEND_NS:
            self.room.look()
            stream.tend(observed_ns)
            if not stream.keeps_its_lock():
                # The new holder of the lock regards the stream as ended, so a line written there might never be
                # exported.
                stream.let_go()
                self.end()
                stream = self._open()
            self._tended_ns = observed_ns
        if self.losses and not (self.room.is_refused and 0 <= observed_ns - self._told_ns < _TELL_NS):
            self._tell_losses(stream, observed_ns)
        return stream

    def look_now(self) -> None:
        """Have the next call tend the stream, however recently that was done."""
        self._tended_ns = 0

    def tell_now(self) -> None:
        """Have the next call record the losses, however recently that was done."""
        self._told_ns = 0

    def end(self, *, leaves: bool = False) -> None:
        """Finish the stream. If an asynchronous exception stops this, the next call or line goes on with it.

        Its writer lock is held as long as the stream is among the `finished`, so that nobody takes it over meanwhile.
        `leaves` is for copied memory: the stream does not end, but belongs to another process with the same memory, if
        there is one.
        """
        stream = self.stream
        if stream is None:
            return
        self._is_ending, self._tended_ns = True, 0
        self.background.end(stream, leaves=leaves)
        if leaves:
            self.room.abandon()
        else:
            self.room.close()
        background = self._new_background()
        appended = self._appended_before + _events(stream)
        gone = self.gone
        if not leaves and stream not in self.finished:
            self.finished.append(stream)
        # No call may come in between from here on, or events would be counted twice or not at all.
        self.background = background
        self._appended_before, self._gone_before = appended, gone
        self.stream = None
        self._is_ending = False

    def abandon(self) -> None:
        """Leave everything to the parent, in a forked child."""
        self.background.abandon()
        self.room.abandon()
        if self.stream is not None:
            self.stream.abandon()

    def lost(self, reason: str, observed_ns: int, error: OSError | None) -> AuditUnavailable:
        """Count an event that will not be written, and return the error for its caller."""
        self.losses.add(reason, observed_ns)
        kind = JournalFull if is_full(error) else JournalUnwritable
        return kind(
            f"{self.directory}: expected to append a line, got {error or reason}; the event was not recorded, and the "
            f"next line of the stream will say so; {self._remedy(error)}"
        )

    def _remedy(self, error: OSError | None) -> str:
        if self._durability is Durability.MEMORY and isinstance(error, Limited):
            return "see what keeps the exporters, raise OTEL_AUDIT_QUEUE_BYTES, or set OTEL_AUDIT_DURABILITY=os"
        return remedy_of(error, "free space, or set OTEL_AUDIT_DIR to another volume")

    def _make_room(self, error: OSError, observed_ns: int) -> None:
        """After a refusal, free the space that is reserved for the journal's own lines, and record the loss."""
        self.room.give(error)
        if self.room.is_refused and self.stream is not None:
            with contextlib.suppress(OSError):  # the loss is recorded at the next attempt
                self.ready(observed_ns)

    def _open(self) -> StreamWriter:
        stream = self._new_stream()
        self.stream = stream
        self.is_unannounced = True
        self.room.measure()
        return stream

    def _new_stream(self) -> StreamWriter:
        tries = _NEW_STREAM_TRIES
        while True:
            try:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                return StreamWriter(
                    StreamFiles(self.directory, str(ids.new_id())),
                    self.describe(),
                    limits=self._limits,
                    durability=self._durability,
                    retire=self.background.syncer.retire,
                )
            except (BlockingIOError, FileNotFoundError):  # somebody has the lock for a moment, or removes the directory
                tries -= 1
                if not tries:
                    raise

    def _tell_losses(self, stream: StreamWriter, observed_ns: int) -> None:
        gap = self.losses.untold()
        stream.write_system(GAP, gap, observed_ns)
        self.losses.told(gap)
        self._told_ns = observed_ns


def _events(stream: StreamWriter) -> int:
    head = stream.head
    return head.seq - head.system
