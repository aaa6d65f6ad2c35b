"""The journal, in which every event is written before `log()` returns, and its counts of those events.

There is one lock, and under it one hash and one write. This module controls who may enter, and copes with
interruptions: a call from inside a call (a signal handler, `__del__`, a logging handler), an asynchronous exception, or
a fork. `otel_audit.journal.writer` does the work under the lock, and handles a disk that refuses.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from otel_audit import ids
from otel_audit.errors import AuditUnavailable
from otel_audit.journal.background import COMMIT_TIMEOUT_S, Commit, Committer
from otel_audit.journal.counts import Counts
from otel_audit.journal.files import make_directory
from otel_audit.journal.locks import prove_locks
from otel_audit.journal.room import Space
from otel_audit.journal.stream import Limits, StreamWriter, SyncFailed
from otel_audit.journal.writer import WritingEnd
from otel_audit.notices import Notices
from otel_audit.settings import Durability
from otel_audit.threads import get_ident, new_lock, new_rlock, watch

__all__ = ["Journal", "Receipt"]


class Receipt(NamedTuple):
    """The result of recording an event, as known when `log()` returns.

    `event_id` is None if the sink gives events no id. `stream_id` and `seq` (the number in the stream) are None until
    the line has a place. `durable` is True if the line survives what the durability setting promises, which is never so
    in memory.
    """

    event_id: str | None
    stream_id: str | None
    seq: int | None
    durable: bool


_DEFERRED_MAX = 1000

_getpid = os.getpid
_new_tuple = tuple.__new__  # builds a NamedTuple in half the time that its own `__new__` takes
_get_ident = get_ident

_leaving: dict[int, threading.RLock] = {}  # held by a process while it leaves its parent's state


class Journal:
    """Append-only, hash-chained lines in a directory. Any thread; fork-safe.

    `describe` returns the description of the writer for each segment header. `on_open` is called after a stream was
    opened, in the process that opened it and without any lock. `on_close` is called, also without any lock, when
    `close` has finished a stream: its file is closed and its writer lock is still held. If it returns False, the lock
    file is left unlocked, so that the process that takes the stream over records its end. `on_fork` is called in a
    child before its first append. `ask_for_room` is called when the directory is nearly full, and returns True if
    somebody will call `room_made`. `commit_timeout_s` is how long an append waits for the disk with `fsync`.

    Raises:
        JournalUnwritable: the directory cannot be written, or its locks do not work.
    """

    def __init__(
        self,
        directory: Path,
        *,
        describe: Callable[[], Mapping[str, Any]],
        limits: Limits | None = None,
        durability: Durability = Durability.OS,
        on_open: Callable[[StreamWriter], None] = lambda stream: None,
        on_close: Callable[[StreamWriter], bool] = lambda stream: True,
        on_fork: Callable[[], None] = lambda: None,
        on_wake: Callable[[], None] = lambda: None,
        ask_for_room: Callable[[], bool] = lambda: False,
        commit_timeout_s: float = COMMIT_TIMEOUT_S,
        notices: Notices | None = None,
    ) -> None:
        self.directory = directory
        self.prepare()
        self.wake_seq = 1 << 62  # the number of the line at which `on_wake` is called; the reader sets it
        self._describe = describe
        self._notices = notices or Notices()
        self._limits = limits or Limits()
        self.durability = durability
        self._on_open = on_open
        self._on_close = on_close
        self._on_fork = on_fork
        self._on_wake = on_wake
        self._ask_for_room = ask_for_room
        self._survives = durability is not Durability.MEMORY
        self.commit_timeout_s = commit_timeout_s
        self._begin()
        watch(self)

    def prepare(self) -> None:
        """Make the directory if it does not exist, and test its locks.

        Raises:
            JournalUnwritable: the directory cannot be written, or its locks do not work.
        """
        make_directory(self.directory)
        prove_locks(self.directory)

    def _begin(self) -> None:
        """Set the state of a process that has written nothing yet."""
        self._lock = new_lock()
        self._inside: set[int] = set()
        self._deferred: deque[tuple[bytes, int, int]] = deque()
        self._announcing: list[object] = []
        self._said_gone = 0
        self._end = WritingEnd(
            self.directory,
            self._describe,
            limits=self._limits,
            durability=self.durability,
            lock=self._lock,
            inside=self._inside,
            look_after=weakref.WeakMethod(self._look_after),
            ask_for_room=self._ask_for_room,
        )
        self._pid = _getpid()  # set last, so that a thread that sees the new value finds the rest ready

    @property
    def stream(self) -> StreamWriter | None:
        """The stream that is open now, if any."""
        return self._end.stream

    @property
    def counts(self) -> Counts:
        """Return the counts since the start of this process or its fork.

        `pending` includes every event, delivered or not.
        """
        return Counts(pending=self._end.events + len(self._deferred), dropped=sum(self.losses.values()))

    @property
    def losses(self) -> Mapping[str, int]:
        """Return the number of events that were not written, by reason."""
        return dict(self._end.losses.total)

    @property
    def gone(self) -> int:
        """Return the number of events that somebody removed before any exporter had them."""
        return self._end.gone

    @property
    def space(self) -> Space:
        """Return the free space of the disk, at most a second old, and its floor. Both are zero without a stream."""
        return self._end.room.space

    def room_made(self) -> None:
        """Measure the directory again after removable files were removed. This answers `ask_for_room`."""
        self._end.room.answered()

    def append(
        self,
        event_id: str,
        event: bytes,
        time_ns: int,
        observed_ns: int,
        is_vital: bool = False,
        commits: list[Commit] | None = None,
    ) -> Receipt:
        """Return once the line survives the death of this process, or with `fsync` a loss of power.

        `event` is a JSON object. If `is_vital`, it is written even on a disk that is nearly full. A call from inside a
        call of the same thread is deferred, and the outer call writes it; its receipt says `durable=False`. If the line
        has to wait for the disk, the wait is added to `commits`, and the receipt is true once `confirm` has returned
        for it.

        Raises:
            AuditUnavailable: the line is in the chain, but may not be durable.
            JournalFull: there is no room; nothing was written, and the loss is counted.
            JournalUnwritable: nothing was written, for another reason; the loss is counted.
        """
        if _getpid() != self._pid:
            self.leave_to_parent()
        me = _get_ident()
        if me in self._inside:
            return self._defer(event_id, event, time_ns, observed_ns)
        try:
            # Marked before the lock is taken, so that a signal handler in between does not wait for its own thread.
            self._inside.add(me)
            with self._lock:
                seq, stream = self._end.write(event, time_ns, observed_ns, is_vital)
                if self._deferred:
                    self._end.write_waiting(self._deferred, stream)
        except AuditUnavailable:
            self._inside.discard(me)
            if self._end.is_unannounced:
                self._announce()  # or nobody would deliver and remove what takes the room
            raise
        finally:
            self._inside.discard(me)
        if self._end.is_unannounced:
            self._announce()
        if self._deferred:
            self.tend()
        receipt = _new_tuple(Receipt, (event_id, stream.files.stream_id, seq, self._survives))
        if (committer := self._end.background.committer) is not None:
            commit = self._committed(committer, stream, seq)
            if commit is not None:
                if commits is None:
                    self._wait(commit)
                else:
                    commits.append(commit)
                return receipt
        if seq >= self.wake_seq:
            self._on_wake()
        return receipt

    def confirm(self, commit: Commit) -> None:
        """Return if the line of this commit is durable.

        Raises:
            AuditUnavailable: it is in the chain, but may not be durable.
        """
        try:
            commit.check()
        except SyncFailed as error:
            raise self._not_durable(error) from error
        if commit.seq >= self.wake_seq:
            self._on_wake()

    def _wait(self, commit: Commit) -> None:
        try:
            commit.wait(self.commit_timeout_s)
        except SyncFailed as error:
            raise self._not_durable(error) from error
        if commit.seq >= self.wake_seq:
            self._on_wake()

    def _committed(self, committer: Committer, stream: StreamWriter, seq: int) -> Commit | None:
        try:
            return committer.commit(stream, seq)
        except SyncFailed as error:
            raise self._not_durable(error) from error

    def _not_durable(self, error: OSError) -> AuditUnavailable:
        unavailable = AuditUnavailable(
            f"{self.directory}: expected to sync a line, got {error}; the event is in the journal and will be "
            "delivered, but a loss of power may take it; replace the disk, or set OTEL_AUDIT_DIR to another volume"
        )
        unavailable.in_journal = True
        return unavailable

    def tend(self) -> None:
        """Check the stream, and write what is due: deferred events, a gap, or a new segment.

        Without an open stream and with nothing due, do nothing.
        """
        self._tend(opens=True)

    def _look_after(self) -> None:
        """Check once a second, even while nothing is logged, that the file is still in its place and ours."""
        self._end.room.measure()
        if (space := self.space).is_low:
            self._notices.say("space", f"{self.directory}: {space.says}; free space, or move OTEL_AUDIT_DIR")
        self._tend(opens=False)
        if (gone := self._end.gone) > self._said_gone:
            self._said_gone = gone
            self._notices.say(
                "gone",
                f"{self.directory}: {gone} events were taken out of the journal before any exporter had them: somebody "
                "truncated a segment; leave the directory out of logrotate, and restore the file from a copy",
            )

    def _tend(self, *, opens: bool) -> None:
        me = _get_ident()
        if me in self._inside or _getpid() != self._pid:
            return
        now_ns = time.time_ns()
        try:
            self._inside.add(me)
            with self._lock:
                waits = opens and (self._deferred or self._end.losses)
                # If the whole directory was removed, it is made again for the next event, and not behind the back of
                # the person who removed it.
                if not waits and (self._end.stream is None or not self.directory.exists()):
                    return
                self._end.look_now()
                stream = self._end.ready(now_ns)
                self._end.write_waiting(self._deferred, stream)
                self._ask_for_sync(stream)
        except OSError:
            return  # deferred events are still there and counted; the next append tells its caller
        finally:
            self._inside.discard(me)
        if self._end.is_unannounced:
            self._announce()

    def _ask_for_sync(self, stream: StreamWriter) -> None:
        """Have lines synced for which nobody waits."""
        committer = self._end.background.committer
        if committer is not None and not stream.is_settled(stream.head.seq):
            committer.ask(stream)

    def close(self) -> None:
        """End the stream and release its lock. A later `append` opens a new one.

        Called from inside an append of the same thread, as from a signal handler, this does nothing. The stream stays
        open, and the kernel releases its lock when the process dies.
        """
        if _getpid() != self._pid:
            self.leave_to_parent()
            return
        me = _get_ident()
        if me in self._inside:
            return
        self._end.tell_now()  # or this stream never will
        self.tend()
        try:
            self._inside.add(me)
            with self._lock:
                self._end.end()
        finally:
            self._inside.discard(me)
        self._let_go()

    def _let_go(self) -> None:
        """Report the ends of finished streams, and release them. Threads that log meanwhile open another stream."""
        finished = self._end.finished
        while finished:
            with suppress(IndexError):  # another thread, or a signal handler, closes too
                self._let_go_of(finished.popleft())

    def _let_go_of(self, stream: StreamWriter) -> None:
        is_told = False
        try:
            is_told = self._is_end_told(stream)
        finally:  # even if Ctrl-C has ended the wait for the ledger
            stream.let_go(remove=is_told)

    def _is_end_told(self, stream: StreamWriter) -> bool:
        try:
            return self._on_close(stream)
        except Exception as error:  # the stream must end anyway, or nobody would take it over
            self._notices.say("close", f"{self.directory}: the end of a stream could not be kept: {error!r}")
            return False

    def reopen(self) -> None:
        """Leave the stream as it is, and let the next append open a new one, since this memory was copied.

        See `Trail.reopen`.

        Called from inside an append of the same thread, this does nothing.
        """
        me = _get_ident()
        if me in self._inside:
            return
        try:
            self._inside.add(me)
            with self._lock:
                self._end.end(leaves=True)
        finally:
            self._inside.discard(me)

    def _announce(self) -> None:
        """Begin to tend and to deliver the open stream.

        This holds no lock of the journal, since it starts threads. `Thread.start` waits until the new thread runs, and
        waits for ever if an asynchronous exception meant for its caller hits the new thread first.
        """
        end = self._end
        while end.is_unannounced:
            turn = object()
            try:
                # Not a lock, which an asynchronous exception just after its acquisition would leave locked for ever.
                self._announcing.append(turn)
                if self._announcing[0] is not turn:
                    return  # another thread is doing it, and looks once more afterwards
                self._announce_open(end)
            finally:
                self._announcing.remove(turn)

    def _announce_open(self, end: WritingEnd) -> None:
        is_done = False
        try:
            end.is_unannounced = False  # before the stream is read: one that opens meanwhile is announced too
            stream = end.stream
            if stream is not None:
                end.background.start(stream)
                self._on_open(stream)
            is_done = True
        finally:
            end.is_unannounced = end.is_unannounced or not is_done

    def _defer(self, event_id: str, event: bytes, time_ns: int, observed_ns: int) -> Receipt:
        if len(self._deferred) >= _DEFERRED_MAX:
            self._end.lost("re-entry", observed_ns, None)
        else:
            self._deferred.append((event, time_ns, observed_ns))
        return Receipt(event_id, None, None, False)

    def hold(self) -> Iterator[None]:
        """See `Forkable`. If a signal handler forks inside an append, nothing is held, since that state is its own."""
        me = _get_ident()
        if me in self._inside:
            return
        try:
            self._inside.add(
                me
            )  # so that a signal handler that logs before the fork is over does not wait for this lock
            with self._lock:
                yield
        finally:
            self._inside.discard(me)

    def held(self) -> None:
        """See `Forkable`."""
        if self._deferred:
            self.tend()

    def leave_to_parent(self) -> bool:
        """Do as `forked` does and return True, in a child forked by C code, which runs no hooks.

        Otherwise return False.
        """
        pid = _getpid()
        if pid == self._pid:
            return False
        with _leaving.setdefault(pid, new_rlock()):  # two threads may serve the first two requests at once
            if pid != self._pid:
                self.forked()
        return True

    def forked(self) -> None:
        """Leave the stream, its locks and its deferred events to the parent, in a forked child."""
        end = self._end
        self._begin()
        ids.reseed()  # otherwise parent and child would make the same ids
        end.abandon()
        self._on_fork()
