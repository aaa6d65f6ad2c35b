"""A journal in memory: the one that is asked for where no file may be written."""

from __future__ import annotations

import errno
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from otel_audit import ids
from otel_audit.journal.cursor import Progress
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal, Written
from otel_audit.journal.memory_stream import MemoryStream, QueueLimits
from otel_audit.journal.open_stream import OpenStream
from otel_audit.journal.room import Room
from otel_audit.journal.stream import Limits
from otel_audit.journal.writer import WritingEnd
from otel_audit.notices import Notices
from otel_audit.settings import Durability

__all__ = ["MemoryJournal"]

_REFUSED: Final = "refused by destination"
_LEFT: Final = "not delivered"
# There from the beginning: an alert on the increase of a counter does not see the step with which it appears.
_REASONS: Final = ("queue full", _REFUSED, _LEFT)


class MemoryJournal(Journal):
    """Hash-chained lines in memory, in one stream a process. Any thread; fork-safe: a child begins with nothing.

    `directory` is only a name: nothing there is looked at or made. `exporters` are the names of those that must have
    had a line before it is freed. An event that one of their destinations refuses is lost, and counted, since nothing
    could send it again. After `give_up` every event is refused.
    """

    _survives = False
    _end: _MemoryEnd

    def __init__(
        self,
        directory: Path,
        *,
        describe: Callable[[], Mapping[str, Any]],
        limits: QueueLimits | None = None,
        exporters: Sequence[str],
        on_open: Callable[[OpenStream], None] = lambda stream: None,
        on_fork: Callable[[], None] = lambda: None,
        on_wake: Callable[[], None] = lambda: None,
        notices: Notices | None = None,
    ) -> None:
        self._queue = limits or QueueLimits()
        self._exporters = exporters
        super().__init__(
            directory,
            describe=describe,
            durability=Durability.MEMORY,
            on_open=on_open,
            on_fork=on_fork,
            on_wake=on_wake,
            notices=notices,
        )

    def prepare(self) -> None:
        """Nothing is needed."""

    def _new_end(self) -> _MemoryEnd:
        return _MemoryEnd(
            self.directory,
            self._describe,
            queue=self._queue,
            exporters=self._exporters,
            lock=self._lock,
            inside=self._inside,
            look_after=weakref.WeakMethod(self._look_after),
        )

    @property
    def exported(self) -> int:
        """The events that every exporter has. To be read before `written`, so that the sum is never less."""
        only = self._end.only
        return only.dealt.exported if only is not None else 0

    @property
    def written(self) -> Written:
        """See `Journal.written`. `dropped` has also what a destination refused, and what was given up."""
        only = self._end.only
        refused = only.dealt.refused if only is not None else 0  # before the events that they are part of
        left = self._left
        lost = self._end.losses.total
        events = len(self._deferred) + (only.events if only is not None else 0)
        by_reason = {**dict.fromkeys(_REASONS, 0), **lost, _REFUSED: refused, _LEFT: left}
        return Written(events + sum(lost.values()), sum(by_reason.values()), by_reason)

    def progress(self) -> Mapping[str, Progress]:
        """How far each exporter has come."""
        cursor = self._end.only.cursor if self._end.only is not None else None
        return {name: cursor.progress(name) if cursor is not None else Progress() for name in self._exporters}

    @property
    def only(self) -> MemoryStream | None:
        """The stream of this process, if it has begun; also after its end."""
        return self._end.only

    @property
    def is_over(self) -> bool:
        """True after `give_up`."""
        return self._end.is_over

    def give_up(self) -> int:
        """Nothing is delivered any more: what is left is lost, and counted so. How many events that are."""
        end = self._end
        was_over, end.is_over = end.is_over, True
        if end.only is not None:
            end.only.give_up()
        return 0 if was_over else self._left

    @property
    def _left(self) -> int:
        """How many events will never be delivered."""
        deferred = len(self._deferred) if self._end.is_over else 0
        return deferred + (self._end.only.left if self._end.only is not None else 0)

    def _look_after(self) -> None:
        super()._look_after()
        only = self._end.only
        if self._end.has_news and only is not None:
            self._end.has_news = False
            # Without the journal's lock: nobody who logs may wait for whoever reads stderr.
            self._notices.say(
                _REFUSED,
                f"events refused by their destination, and lost: {only.dealt.refused} so far; with "
                "OTEL_AUDIT_DURABILITY=memory there is nowhere to set them aside",
            )

    def _leave(self) -> None:
        """See `Journal.reopen`. What was given up stays lost; the numbers begin anew, as in a forked child."""
        self._end.background.syncer.close()
        self._end = self._new_end()

    def _is_gone(self) -> bool:
        return False


class _MemoryEnd(WritingEnd):
    """One stream, and none after it. `has_news`: a destination has refused events since somebody looked."""

    def __init__(
        self,
        directory: Path,
        describe: Callable[[], Mapping[str, Any]],
        *,
        queue: QueueLimits,
        exporters: Sequence[str],
        lock: threading.Lock,
        inside: set[int],
        look_after: weakref.WeakMethod[Callable[[], None]],
    ) -> None:
        self.only: MemoryStream | None = None  # also after its end
        self.is_over = False
        self.has_news = False
        self._queue = queue
        self._exporters = exporters
        super().__init__(
            directory,
            describe,
            limits=Limits(),
            durability=Durability.MEMORY,
            lock=lock,
            inside=inside,
            look_after=look_after,
        )

    def _new_room(self, limits: Limits) -> Room:
        return _NoDisk(self.directory, None)

    def _open(self) -> OpenStream:
        if self.is_over or self.only is not None:
            raise OSError(errno.ESHUTDOWN, "one that was closed")
        files = StreamFiles(self.directory, str(ids.new_id()))
        stream = MemoryStream(files, self.describe(), limits=self._queue, exporters=self._exporters)
        self.only = stream
        if self.is_over:  # since the check above, by a signal handler
            stream.give_up()
        self.stream = stream
        self.is_unannounced = True
        return stream

    def ready(self, observed_ns: int) -> OpenStream:
        """See `WritingEnd`."""
        refusals = self.only.refusals if self.only is not None else ()
        while refusals:
            self.losses.tell(_REFUSED, refusals.popleft())
            self.has_news = True
        return super().ready(observed_ns)

    def _refusal(self, error: OSError | None, reason: str) -> str:
        if error is not None and error.errno == errno.ESHUTDOWN:
            return f"memory: expected an open journal, got {error.strerror}; the event was not recorded; close it last"
        found = (error.strerror if error is not None else None) or reason
        return (
            f"memory: expected room for an event, got {found}; the event was not recorded, and the next line of the "
            "stream will say so; see what keeps the exporters, raise OTEL_AUDIT_QUEUE_SIZE or OTEL_AUDIT_QUEUE_BYTES, "
            "or set OTEL_AUDIT_DURABILITY=os"
        )


class _NoDisk(Room):
    """The room of a journal that needs no disk: nothing is looked at, nothing set aside."""

    def look(self) -> None:
        """There is nothing to take."""

    def give(self, error: OSError) -> None:
        """There is nothing to give."""
