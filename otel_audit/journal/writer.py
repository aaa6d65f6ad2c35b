"""The end of a journal where lines are added: the stream that is open, the room for it, and what was lost.

A stream is opened when there is something to write, looked after once a second, and left when its lock was lost. A
loss is told before anything else is written.

Not safe for threads by itself: `Journal` holds its lock around every call.
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
from otel_audit.errors import AuditUnavailable, JournalFull, JournalUnwritable
from otel_audit.journal.background import Background
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import GAP
from otel_audit.journal.room import Limited, Losses, Room, is_full, reason_of
from otel_audit.journal.stream import Limits, StreamWriter
from otel_audit.settings import Durability

__all__ = ["WritingEnd"]

_TEND_NS: Final = 1_000_000_000
_TELL_NS: Final = 60_000_000_000  # a gap line that often while events are refused: what is set aside is small
_PLACE_BYTES: Final = 208  # what a stream adds to an event: two times, its id, a number, the hash of the line before


class WritingEnd:
    """What one process writes of a journal. `describe` gives what each segment header says of the writer.

    `lock`, `inside` and `look_after` are for the threads, see `Background`; `ask_for_room`: see `Room`.
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
        self.is_unannounced = False  # somebody is to be told that a stream was opened
        self._limits = limits
        self._durability = durability
        self._lock = lock
        self._inside = inside
        self._look_after = look_after
        self.background = self._new_background()
        self._appended_before = self._gone_before = 0  # events in streams that have ended
        self._is_ending = False
        self.finished: deque[StreamWriter] = deque()  # streams whose writer lock is to be let go
        self._tended_ns = 0
        self._told_ns = 0

    def _new_background(self) -> Background:
        return Background(
            self.directory, self._durability, lock=self._lock, inside=self._inside, look_after=self._look_after
        )

    @property
    def events(self) -> int:
        """How many events of the application were written. Any thread."""
        stream = self.stream
        return self._appended_before + (_events(stream) if stream else 0)

    @property
    def gone(self) -> int:
        """How many of them nobody can read any more, of those that no exporter had. Any thread."""
        stream = self.stream
        return self._gone_before + (stream.gone if stream else 0)

    def write(self, event: bytes, time_ns: int, observed_ns: int, is_vital: bool) -> tuple[int, StreamWriter]:
        """Append one line; its number, and the stream that has it.

        `is_vital`: see `Journal.append`.

        Raises:
            JournalFull: nothing was written, there is no room; the loss is counted.
            JournalUnwritable: nothing was written, for another reason; the loss is counted.
        """
        stream, losses = self.stream, self.losses
        try:
            # From both sides: a wall clock that was set back must not end the looks for years.
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
        """Write what waits, in its order. On a disk that refuses it goes on waiting."""
        with contextlib.suppress(OSError):
            self.room.check(is_vital=True)  # they were accepted
            while waiting:
                # Written before it is taken out: an exception in between writes it twice, never not at all.
                stream.write(*waiting[0])
                waiting.popleft()

    def ready(self, observed_ns: int) -> StreamWriter:
        """The open stream, looked after: opened if there is none, a loss told before anything else is written.

        Raises:
            OSError: there is none, or what is wrong with it cannot be mended now.
        """
        if self._is_ending:
            self.end()
        stream = self.stream or self._open()
        if not 0 <= observed_ns - self._tended_ns < _TEND_NS:
            self.room.look()
            stream.tend(observed_ns)
            if not stream.keeps_its_lock():
                # Whoever has the lock now takes the stream for ended: what is written there might never be exported.
                stream.let_go()
                self.end()
                stream = self._open()
            self._tended_ns = observed_ns
        if self.losses and not (self.room.is_refused and 0 <= observed_ns - self._told_ns < _TELL_NS):
            self._tell_losses(stream, observed_ns)
        return stream

    def look_now(self) -> None:
        """The stream is looked after with the next call, however short a time ago that was done."""
        self._tended_ns = 0

    def tell_now(self) -> None:
        """What is untold is told with the next look, however short a time ago that was done."""
        self._told_ns = 0

    def end(self, *, leaves: bool = False) -> None:
        """The stream is finished. Where an asynchronous exception stops this, the next call or line goes on with it.

        Its writer lock is held for as long as it is among the `finished`, so that nobody takes it over meanwhile.
        `leaves`: it has not, but is another process's from now on, if there is one with the same memory.
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
        # No call from here on, so that nobody counts the events twice, or not at all.
        self.background = background
        self._appended_before, self._gone_before = appended, gone
        self.stream = None
        self._is_ending = False

    def abandon(self) -> None:
        """In a forked child: all of it is the parent's."""
        self.background.abandon()
        self.room.abandon()
        if self.stream is not None:
            self.stream.abandon()

    def lost(self, reason: str, observed_ns: int, error: OSError | None) -> AuditUnavailable:
        """Count an event that will not be written; the error for its caller."""
        self.losses.add(reason, observed_ns)
        kind = JournalFull if is_full(error) else JournalUnwritable
        return kind(
            f"{self.directory}: expected to append a line, got {error or reason}; the event was not recorded, and the "
            f"next line of the stream will say so; {self._remedy(error)}"
        )

    def _remedy(self, error: OSError | None) -> str:
        if self._durability is Durability.MEMORY and isinstance(error, Limited):
            return "see what keeps the exporters, raise OTEL_AUDIT_QUEUE_BYTES, or set OTEL_AUDIT_DURABILITY=os"
        return "free space, or set OTEL_AUDIT_DIR to another volume"

    def _make_room(self, error: OSError, observed_ns: int) -> None:
        """After a refusal: what is set aside for the journal's own lines is free for them, and the loss is told."""
        self.room.give(error)
        if self.room.is_refused and self.stream is not None:
            with contextlib.suppress(OSError):  # it waits for the next try
                self.ready(observed_ns)

    def _open(self) -> StreamWriter:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        stream = StreamWriter(
            StreamFiles(self.directory, str(ids.new_id())),
            self.describe(),
            limits=self._limits,
            durability=self._durability,
            retire=self.background.syncer.retire,
        )
        self.stream = stream
        self.is_unannounced = True
        self.room.measure()
        return stream

    def _tell_losses(self, stream: StreamWriter, observed_ns: int) -> None:
        gap = self.losses.untold()
        stream.write_system(GAP, gap, observed_ns)
        self.losses.told(gap)
        self._told_ns = observed_ns


def _events(stream: StreamWriter) -> int:
    head = stream.head
    return head.seq - head.system
