"""The journal: where events go before `log()` returns, and what it tells of the events that it was given.

One lock, and under it one hash and one write. This module deals with who may come in and what may come in between: a
call from inside a call (a signal handler, `__del__`, a logging handler), an asynchronous exception, a fork.
`otel_audit.journal.writer` says what is done under the lock, and when a disk refuses.
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
    """What is known of a recorded event when `log()` returns.

    `event_id` is None where the sink gives events no id. `stream_id` and `seq` (its number in the stream) are None
    while the line has no place yet. `durable`: the line survives what the durability setting says; never in memory.
    """

    event_id: str | None
    stream_id: str | None
    seq: int | None
    durable: bool


_DEFERRED_MAX = 1000

_getpid = os.getpid
_new_tuple = tuple.__new__  # a NamedTuple is made in half the time without its own `__new__`
_get_ident = get_ident

_leaving: dict[int, threading.RLock] = {}  # by the process that leaves what it was given at its fork


class Journal:
    """Append-only, hash-chained lines in a directory. Any thread; fork-safe.

    `describe` gives what each segment header says of the writer. `on_open` is called after a stream was opened, in the
    process that opened it, without any lock; `on_close` when `close` has finished one, without any lock as well: its
    file is closed and its writer lock is still held. False of it leaves the lock file there, free, for whoever takes
    the stream over to tell of its end.
    `on_fork` is called in a child before its first append. `ask_for_room` is called
    when the directory is nearly as full as it may be, and says whether somebody will call `room_made`.
    `commit_timeout_s`: how long an append waits for the disk with `fsync`.

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
        self.wake_seq = 1 << 62  # the line at which `on_wake` is called next; set by whoever reads along
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
        """Make the directory, if it is not there, and try its locks.

        Raises:
            JournalUnwritable: the directory cannot be written, or its locks do not work.
        """
        make_directory(self.directory)
        prove_locks(self.directory)

    def _begin(self) -> None:
        """The state of a process that has written nothing yet."""
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
        self._pid = _getpid()  # last: whoever finds it right finds the rest right too

    @property
    def stream(self) -> StreamWriter | None:
        """The stream that is open now, if any."""
        return self._end.stream

    @property
    def counts(self) -> Counts:
        """The events since the start of this process (or its fork). `pending` are all that it has, delivered or not."""
        return Counts(pending=self._end.events + len(self._deferred), dropped=sum(self.losses.values()))

    @property
    def losses(self) -> Mapping[str, int]:
        """How many events were not written, by reason."""
        return dict(self._end.losses.total)

    @property
    def gone(self) -> int:
        """How many of those that it had were taken away by somebody before any exporter had them."""
        return self._end.gone

    @property
    def space(self) -> Space:
        """The free space of the disk as it was within the last second, and its floor; nothing without a stream."""
        return self._end.room.space

    def room_made(self) -> None:
        """Measure the directory anew, after what may be removed was removed: the answer to `ask_for_room`."""
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
        """Return once the line survives the death of this process, or of the machine with `fsync`.

        `event` is a JSON object. `is_vital`: it is written on a disk that is nearly full too. A call from inside a
        call of the same thread is kept and written by the outer one: its receipt says `durable=False`. Where there is a
        wait for the disk, `commits` gets it; what the receipt says is true once `confirm` has returned for it.

        Raises:
            AuditUnavailable: the line is in the chain, but not known to be durable.
            JournalFull: nothing was written, there is no room; the loss is counted.
            JournalUnwritable: nothing was written, for another reason; the loss is counted.
        """
        if _getpid() != self._pid:
            self.leave_to_parent()
        me = _get_ident()
        if me in self._inside:
            return self._defer(event_id, event, time_ns, observed_ns)
        try:
            # Marked before the lock is taken: a signal handler that comes in between must not wait for its own thread.
            self._inside.add(me)
            with self._lock:
                seq, stream = self._end.write(event, time_ns, observed_ns, is_vital)
                if self._deferred:
                    self._end.write_waiting(self._deferred, stream)
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
        """The line of this commit is durable.

        Raises:
            AuditUnavailable: it is in the chain, but not known to be durable.
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
        """Look after the stream, and write what waits: deferred events, a gap, a new segment that is due.

        Nothing happens where no stream is open and nothing waits.
        """
        self._tend(opens=True)

    def _look_after(self) -> None:
        """Once a second, also while nothing is logged: is the file that was written still there and ours?"""
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
                # A directory that was removed as a whole is made again for the next event, not behind the back of
                # whoever removed it.
                if not waits and (self._end.stream is None or not self.directory.exists()):
                    return
                self._end.look_now()
                stream = self._end.ready(now_ns)
                self._end.write_waiting(self._deferred, stream)
                self._ask_for_sync(stream)
        except OSError:
            return  # what waits is still there, and counted; the next append tells its caller
        finally:
            self._inside.discard(me)
        if self._end.is_unannounced:
            self._announce()

    def _ask_for_sync(self, stream: StreamWriter) -> None:
        """What nobody waits for is synced too."""
        committer = self._end.background.committer
        if committer is not None and not stream.is_settled(stream.head.seq):
            committer.ask(stream)

    def close(self) -> None:
        """The stream has ended and its lock is released. A later `append` opens a new one.

        From inside an append of the same thread, as a signal handler may call it, nothing happens: the stream stays
        open, and its lock goes with the process.
        """
        if _getpid() != self._pid:
            self.leave_to_parent()
            return
        me = _get_ident()
        if me in self._inside:
            return
        self._end.tell_now()  # or never by this stream
        self.tend()
        try:
            self._inside.add(me)
            with self._lock:
                self._end.end()
        finally:
            self._inside.discard(me)
        self._let_go()

    def _let_go(self) -> None:
        """Tell of the ends of the streams that are finished, and let go of them. Who logs meanwhile opens another."""
        finished = self._end.finished
        while finished:
            with suppress(IndexError):  # another thread, or a signal handler, closes too
                self._let_go_of(finished.popleft())

    def _let_go_of(self, stream: StreamWriter) -> None:
        is_told = False
        try:
            is_told = self._is_end_told(stream)
        finally:  # also where Ctrl-C has ended the wait for the ledger
            stream.let_go(remove=is_told)

    def _is_end_told(self, stream: StreamWriter) -> bool:
        try:
            return self._on_close(stream)
        except Exception as error:  # the stream ends all the same, or nobody would take it over
            self._notices.say("close", f"{self.directory}: the end of a stream could not be kept: {error!r}")
            return False

    def reopen(self) -> None:
        """Leave the stream as it is. The next append opens a new one, since this memory was copied: see `Trail.reopen`.

        From inside an append of the same thread nothing happens.
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
        """Begin to look after the open stream, and to deliver it.

        Without the journal's lock, since this starts threads: `Thread.start` waits until the new thread runs, and
        waits for ever when an asynchronous exception meant for its caller hits the new thread first.
        """
        turn = object()
        try:
            # Not a lock: an asynchronous exception that comes as soon as it is taken would leave it locked for ever.
            self._announcing.append(turn)
            if self._announcing[0] is not turn:
                return  # another thread is at it
            end = self._end
            stream = end.stream
            if stream is not None:
                end.background.start(stream)
                self._on_open(stream)
            end.is_unannounced = end.stream is not stream
        finally:
            self._announcing.remove(turn)

    def _defer(self, event_id: str, event: bytes, time_ns: int, observed_ns: int) -> Receipt:
        if len(self._deferred) >= _DEFERRED_MAX:
            self._end.lost("re-entry", observed_ns, None)
        else:
            self._deferred.append((event, time_ns, observed_ns))
        return Receipt(event_id, None, None, False)

    def hold(self) -> Iterator[None]:
        """See `Forkable`. Nothing is held where a signal handler forks inside an append: that state is its own."""
        me = _get_ident()
        if me in self._inside:
            return
        try:
            self._inside.add(me)  # a signal handler that logs before the fork is over must not wait for this lock
            with self._lock:
                yield
        finally:
            self._inside.discard(me)

    def held(self) -> None:
        """See `Forkable`."""
        if self._deferred:
            self.tend()

    def leave_to_parent(self) -> bool:
        """In a child that C code has forked, which runs no hooks: as `forked`, and True. Else nothing happens."""
        pid = _getpid()
        if pid == self._pid:
            return False
        with _leaving.setdefault(pid, new_rlock()):  # the first two requests may come to two threads at once
            if pid != self._pid:
                self.forked()
        return True

    def forked(self) -> None:
        """In a forked child: the parent keeps its stream, its locks and its waiting events."""
        end = self._end
        self._begin()
        ids.reseed()  # or parent and child would make the same ids
        end.abandon()
        self._on_fork()
