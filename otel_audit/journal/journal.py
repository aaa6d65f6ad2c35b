"""The journal: where events go before `log()` returns.

One lock, and under it one hash and one write. What may come in between is dealt with here: a call from inside a call
(a signal handler, `__del__`, a logging handler), an asynchronous exception, a fork, a disk that refuses.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import uuid_utils

from otel_audit.errors import AuditUnavailable, JournalFull, JournalUnwritable
from otel_audit.journal.commit import COMMIT_TIMEOUT_S, Commit, Committer
from otel_audit.journal.files import StreamFiles, make_directory
from otel_audit.journal.forks import watch
from otel_audit.journal.line import GAP
from otel_audit.journal.locks import prove_locks
from otel_audit.journal.losses import Losses
from otel_audit.journal.open_stream import OpenStream
from otel_audit.journal.room import Limited, Room
from otel_audit.journal.stream import Limits, StreamWriter, SyncFailed
from otel_audit.journal.syncer import Syncer
from otel_audit.settings import Durability

__all__ = ["Journal", "Receipt", "Written"]

_TEND_NS = 1_000_000_000
_TELL_NS = 60_000_000_000  # a gap line that often while events are refused: what is set aside for them is small
_PLACE_BYTES = 143  # what a stream adds to a body: its id, the number of the line, the hash of the one before
_DEFERRED_MAX = 1000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOBUFS})
_WORDS = {errno.ENOBUFS: "queue full", errno.ESHUTDOWN: "closed"}

_getpid = os.getpid
_get_ident = threading.get_ident


class Receipt(NamedTuple):
    """What is known of a recorded event when `log()` returns.

    `event_id` is None where the sink gives events no id. `stream_id` and `seq` (its number in the stream) are None
    while the line has no place yet. `durable`: the line survives what the durability setting says; never in memory.
    """

    event_id: str | None
    stream_id: str | None
    seq: int | None
    durable: bool


@dataclass(frozen=True, slots=True)
class Written:
    """Events of the application that this process handed to the journal."""

    emitted: int
    dropped: int
    by_reason: Mapping[str, int] = field(default_factory=dict)


class Journal:
    """Append-only, hash-chained lines in a directory. Any thread; fork-safe.

    `describe` gives what each segment header says of the writer. `on_open` is called after a stream was opened, in the
    process that opened it, without any lock; `on_fork` in a child before its first append. `commit_timeout_s`: how long
    an append waits for the disk with `fsync`.

    Raises:
        JournalUnwritable: the directory cannot be written, or its locks do not work.
    """

    _survives = True  # a line that was written survives what the durability setting says

    def __init__(
        self,
        directory: Path,
        *,
        describe: Callable[[], Mapping[str, Any]],
        limits: Limits | None = None,
        durability: Durability = Durability.OS,
        on_open: Callable[[OpenStream], None] = lambda stream: None,
        on_fork: Callable[[], None] = lambda: None,
        on_wake: Callable[[], None] = lambda: None,
        commit_timeout_s: float = COMMIT_TIMEOUT_S,
    ) -> None:
        self.directory = directory
        self._prepare()
        self.wake_seq = 1 << 62  # the line at which `on_wake` is called next; set by whoever reads along
        self._describe = describe
        self._limits = limits or Limits()
        self.durability = durability
        self._on_open = on_open
        self._on_fork = on_fork
        self._on_wake = on_wake
        self.commit_timeout_s = commit_timeout_s
        self._appended_before = 0  # lines of streams that this process has ended
        self._ends_committer = weakref.finalize(self, int)
        self._begin()
        watch(self)

    def _prepare(self) -> None:
        make_directory(self.directory)
        prove_locks(self.directory)

    def _begin(self) -> None:
        """The state of a process that has written nothing yet."""
        self._lock = threading.Lock()
        self._inside: set[int] = set()
        self._deferred: deque[tuple[bytes, int]] = deque()
        self._losses = Losses()
        self._told_ns = 0
        self._room = self._new_room()
        self._stream: OpenStream | None = None
        self._unannounced = False
        self._announcing: list[object] = []
        self._syncer = self._new_syncer()
        self._committer = self._new_committer()
        self._is_ending = False
        self._tended_ns = 0
        self._pid = _getpid()  # last: whoever finds it right finds the rest right too

    def _new_room(self) -> Room:
        return Room(self.directory, self._limits.directory_bytes)

    def _new_syncer(self) -> Syncer:
        return Syncer(self.directory, self._look_after, syncs=self.durability is Durability.OS)

    def _new_committer(self) -> Committer | None:
        if self.durability is not Durability.FSYNC:
            return None
        committer = Committer(self._lock, self._inside)
        self._ends_committer.detach()
        self._ends_committer = weakref.finalize(self, committer.close)  # of a journal that nobody closed
        self._ends_committer.atexit = False
        return committer

    @property
    def stream(self) -> OpenStream | None:
        """The stream that is open now, if any."""
        return self._stream

    @property
    def written(self) -> Written:
        """The events of the application since the start of this process (or its fork)."""
        stream = self._stream
        appended = self._appended_before + (_events(stream) if stream else 0)
        dropped = self._losses.total
        count = sum(dropped.values())
        return Written(appended + len(self._deferred) + count, count, dropped)

    def append(self, event_id: str, event: bytes, time_ns: int, observed_ns: int) -> Receipt:
        """Return once the line survives the death of this process, or of the machine with `fsync`.

        `event` is a JSON object. A call from inside a call of the same thread is kept and written by the outer one:
        its receipt says `durable=False`.

        Raises:
            AuditUnavailable: the line is in the chain, but not known to be durable.
            JournalFull: nothing was written, there is no room; the loss is counted.
            JournalUnwritable: nothing was written, for another reason; the loss is counted.
        """
        receipt, commit = self.begin(event_id, event, time_ns, observed_ns)
        if commit is not None:
            self._wait(commit)
        return receipt

    def begin(self, event_id: str, event: bytes, time_ns: int, observed_ns: int) -> tuple[Receipt, Commit | None]:
        """Write the line as `append` does, and leave the wait for the disk to the caller, if there is one.

        What the receipt says is true once `confirm` has returned for the commit.

        Raises:
            AuditUnavailable: as `append`.
        """
        body = b'%b,"time_ns":%d,"observed_ns":%d' % (event[:-1], time_ns, observed_ns)
        if _getpid() != self._pid:
            self.forked()  # by C code, which runs no fork hooks
        me = _get_ident()
        if me in self._inside:
            return self._defer(event_id, body, observed_ns), None
        try:
            # Marked before the lock is taken: a signal handler that comes in between must not wait for its own thread.
            self._inside.add(me)
            with self._lock:
                seq, stream = self._write(body, observed_ns)
                receipt = Receipt(event_id, stream.files.stream_id, seq, self._survives)
                if self._deferred:
                    self._write_deferred(stream)
        finally:
            self._inside.discard(me)
        if self._unannounced:
            self._announce()
        if self._deferred:
            self.tend()
        commit = None if self._committer is None else self._committed(self._committer, stream, seq)
        if commit is None and seq >= self.wake_seq:
            self._on_wake()
        return receipt, commit

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

    def _committed(self, committer: Committer, stream: OpenStream, seq: int) -> Commit | None:
        """The wait for the line; None when it was synced here, since no thread does it."""
        assert isinstance(stream, StreamWriter)  # nothing else is synced
        if committer.is_running:
            return committer.commit(stream, seq)
        me = _get_ident()
        try:
            self._inside.add(me)
            with self._lock:
                if not stream.is_settled(seq):  # else it was closed in this moment, which synced it
                    stream.sync_at_once()
        except OSError as error:
            raise self._not_durable(error) from error
        finally:
            self._inside.discard(me)
        if (failed := stream.sync_error(seq)) is not None:
            raise self._not_durable(failed) from failed
        return None

    def _not_durable(self, error: OSError) -> AuditUnavailable:
        return AuditUnavailable(
            f"{self.directory}: expected to sync a line, got {error}; the event is in the journal, and a loss of "
            "power may take it; replace the disk, or set OTEL_AUDIT_DIR to another volume"
        )

    def tend(self) -> None:
        """Write what waits: deferred events, a gap, a new segment that is due. Nothing happens on an idle journal."""
        self._tend(opens=True)

    def _look_after(self) -> None:
        """Once a second, also while nothing is logged: is the file that was written still there and ours?"""
        self._room.measure()
        self._tend(opens=False)

    def _tend(self, *, opens: bool) -> None:
        me = _get_ident()
        if me in self._inside or _getpid() != self._pid:
            return
        now_ns = time.time_ns()
        try:
            self._inside.add(me)
            with self._lock:
                if self._stream is None and not (opens and (self._deferred or self._losses)):
                    return
                if not opens and self._is_gone():
                    return
                stream = self._ready(now_ns)
                self._write_deferred(stream)
                self._ask_for_sync(stream)
        except OSError:
            return  # what waits is still there, and counted; the next append tells its caller
        finally:
            self._inside.discard(me)
        if self._unannounced:
            self._announce()

    def _ask_for_sync(self, stream: OpenStream) -> None:
        """What nobody waits for is synced too."""
        if self._committer is None or not isinstance(stream, StreamWriter):
            return
        if not stream.is_settled(stream.head.seq):
            self._committer.ask(stream)

    def _is_gone(self) -> bool:
        """Removed as a whole: made again for the next event, not behind the back of who removed it."""
        return not self.directory.exists()

    def close(self) -> None:
        """The stream has ended and its lock is released. A later `append` opens a new one.

        From inside an append of the same thread, as a signal handler may call it, nothing happens: the stream stays
        open, and its lock goes with the process.
        """
        if _getpid() != self._pid:
            self.forked()
            return
        me = _get_ident()
        if me in self._inside:
            return
        self._told_ns = 0  # what is untold is told now, or never by this stream
        self.tend()
        try:
            self._inside.add(me)
            with self._lock:
                self._end_stream()
        finally:
            self._inside.discard(me)

    def _end_stream(self) -> None:
        """The stream has ended. Where an asynchronous exception stops this, the next call or append goes on with it."""
        stream = self._stream
        if stream is None:
            return
        self._is_ending, self._tended_ns = True, 0
        self._syncer.close()
        stream.close()
        self._room.close()
        if self._committer is not None:
            self._committer.close()
        syncer, committer = self._new_syncer(), self._new_committer()
        appended = self._appended_before + _events(stream)
        # No call from here on, so that nobody counts the events twice, or not at all.
        self._syncer, self._committer = syncer, committer
        self._appended_before = appended
        self._stream = None
        self._is_ending = False

    def _write(self, body: bytes, observed_ns: int) -> tuple[int, OpenStream]:
        stream = self._stream
        try:
            # From both sides: a wall clock that was set back must not end the looks for years.
            if stream is None or self._losses or not 0 <= observed_ns - self._tended_ns < _TEND_NS:
                stream = self._ready(observed_ns)
            if not self._room.is_scarce:
                return stream.write(body, observed_ns), stream
            self._room.check()
            seq = stream.write(body, observed_ns)
            self._room.added(len(body) + _PLACE_BYTES)
            return seq, stream
        except OSError as error:
            lost = self._lost(_reason(error), observed_ns, error)
            self._make_room(error, observed_ns)
            raise lost from error

    def _ready(self, observed_ns: int) -> OpenStream:
        """The open stream, looked after: opened if there is none, a loss told before anything else is written."""
        if self._is_ending:
            self._end_stream()
        stream = self._stream or self._open()
        if not 0 <= observed_ns - self._tended_ns < _TEND_NS:
            self._room.look()
            stream.tend(observed_ns)
            if not stream.keeps_its_lock():
                # Whoever has the lock now takes the stream for ended: what is written there might never be exported.
                self._end_stream()
                stream = self._open()
            self._tended_ns = observed_ns
        if self._losses and not (self._room.is_refused and 0 <= observed_ns - self._told_ns < _TELL_NS):
            self._tell_losses(stream, observed_ns)
        return stream

    def _make_room(self, error: OSError, observed_ns: int) -> None:
        """After a refusal: what is set aside for the journal's own lines is free for them, and the loss is told."""
        self._room.give(error)
        if self._room.is_refused and self._stream is not None:
            with contextlib.suppress(OSError):  # it waits for the next try
                self._ready(observed_ns)

    def _open(self) -> OpenStream:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        stream = StreamWriter(
            StreamFiles(self.directory, str(uuid_utils.uuid7())),
            self._describe(),
            limits=self._limits,
            durability=self.durability,
            retire=self._syncer.retire,
        )
        self._stream = stream
        self._unannounced = True
        self._room.measure()
        return stream

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
            stream = self._stream
            if stream is not None:
                self._syncer.follow(stream if isinstance(stream, StreamWriter) else None)
                if self._committer is not None:
                    self._committer.start()
                self._on_open(stream)
            self._unannounced = self._stream is not stream
        finally:
            self._announcing.remove(turn)

    def _tell_losses(self, stream: OpenStream, observed_ns: int) -> None:
        gap = self._losses.untold()
        stream.write_system(GAP, gap, observed_ns)
        self._losses.told(gap)
        self._told_ns = observed_ns

    def _defer(self, event_id: str, body: bytes, observed_ns: int) -> Receipt:
        if len(self._deferred) >= _DEFERRED_MAX:
            self._lost("re-entry", observed_ns, None)
        else:
            self._deferred.append((body, observed_ns))
        return Receipt(event_id, None, None, False)

    def _write_deferred(self, stream: OpenStream) -> None:
        # On a disk that refuses, what waits goes on waiting: the event of the caller is written all the same.
        with contextlib.suppress(OSError):
            self._room.check()
            while self._deferred:
                # Written before it is taken out: an exception in between writes it twice, never not at all.
                stream.write(*self._deferred[0])
                self._deferred.popleft()

    def _lost(self, reason: str, observed_ns: int, error: OSError | None) -> AuditUnavailable:
        self._losses.add(reason, observed_ns)
        kind = JournalFull if error is not None and error.errno in _FULL else JournalUnwritable
        return kind(self._refusal(error, reason))

    def _refusal(self, error: OSError | None, reason: str) -> str:
        return (
            f"{self.directory}: expected to append a line, got {error or reason}; the event was not recorded, and the "
            "next line of the stream will say so; free space, or set OTEL_AUDIT_DIR to another volume"
        )

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

    def forked(self) -> None:
        """In a forked child: the parent keeps its stream, its locks and its waiting events."""
        stream = self._stream
        self._syncer.abandon()
        if self._committer is not None:
            self._committer.abandon()
        self._room.abandon()
        self._begin()
        self._appended_before = 0
        uuid_utils.reseed_rng()  # or parent and child would make the same ids
        if stream is not None:
            stream.abandon()
        self._on_fork()


def _events(stream: OpenStream) -> int:
    head = stream.head
    return head.seq - head.system


def _reason(error: OSError) -> str:
    if isinstance(error, Limited):
        return "directory limit"
    if error.errno in _WORDS:
        return _WORDS[error.errno]
    return "disk full" if error.errno in _FULL else errno.errorcode.get(error.errno or 0, "write failed")
