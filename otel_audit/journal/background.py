"""The threads that work for the stream that is open: one looks after it, one syncs it for those who wait.

A write that was acknowledged in `os` mode is in the page cache. Without the `Syncer` the kernel would write it back
some thirty seconds later, and nobody would see an error of that write-back. A file that was removed would be noticed
with the next event only, which may never come.

With `fsync` the `Committer` does one `fdatasync` for every caller that waits for one. No caller does it itself: each
may be interrupted at any step, and a failed sync must not go unnoticed with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Final

from otel_audit.journal.files import sync_directory
from otel_audit.journal.segment import OpenSegment
from otel_audit.journal.stream import StreamWriter, SyncFailed
from otel_audit.settings import Durability
from otel_audit.threads import RealThread, SimpleQueue, acquired, get_ident, new_lock

__all__ = ["COMMIT_TIMEOUT_S", "Background", "Commit", "Committer", "Syncer"]


# What the kernel gives a disk for one command before it resets it: who waits longer waits for a disk that is gone.
COMMIT_TIMEOUT_S: Final = 30.0
_LOOK_S: Final = 0.1


class Commit:
    """The wait for one line to become durable. For one waiter, a thread or a callback."""

    def __init__(self, stream: StreamWriter, seq: int, committer: Committer) -> None:
        self.stream = stream
        self.seq = seq
        self._committer = committer
        self._served = new_lock()
        self._served.acquire()
        self._callback: Callable[[], object] | None = None
        self._failure: OSError | None = None

    def served(self, failure: OSError | None) -> None:
        """Its sync is over, well or not; or there was none, because of the failure."""
        self._failure = failure
        with contextlib.suppress(RuntimeError):  # by whoever closed the committer in the same moment
            self._served.release()
        callback = self._callback
        if callback is not None:
            callback()

    def call_when_served(self, callback: Callable[[], object]) -> None:
        """`callback` is called from another thread when the sync is over; perhaps twice, perhaps at once."""
        self._callback = callback
        if not self._served.locked():
            callback()

    def wait(self, timeout_s: float) -> None:
        """Return once the line is durable.

        Raises:
            SyncFailed: it is in the chain, but not known to be durable.
        """
        deadline = time.monotonic() + timeout_s
        while not acquired(self._served, min(_LOOK_S, deadline - time.monotonic())):
            # The stream was closed, or this is a child that was forked by a signal handler inside this wait.
            if self.stream.is_settled(self.seq) or self._committer.is_stopped or time.monotonic() >= deadline:
                break
        self.check()

    def check(self) -> None:
        """Return if the line is durable now.

        Raises:
            SyncFailed: it is in the chain, but not known to be durable.
        """
        if not self.stream.is_settled(self.seq):
            error = self._failure or TimeoutError(errno.ETIMEDOUT, "the disk took too long")
            raise _sync_failed(self.stream, error) from error
        if (failed := self.stream.sync_error(self.seq)) is not None:
            raise _sync_failed(self.stream, failed) from failed


class Committer:
    """The thread that syncs for all callers of one journal, whose `lock` it takes before and after a sync, not during.

    Daemon; runs from `start` until `close`, and is among the threads `inside` the journal for as long: what is logged
    in it, by a `__del__` that the collector of garbage runs there, must not wait for it.
    """

    def __init__(self, lock: threading.Lock, inside: set[int]) -> None:
        self._lock = lock
        self._inside = inside
        # Not a Condition: a signal handler that logs may come in while its own thread is inside.
        self._waiting: SimpleQueue[Commit | StreamWriter | None] = SimpleQueue()
        self._thread: RealThread | None = None
        self._abandoned = False
        self._closed = False

    @property
    def is_running(self) -> bool:
        """True while there is a thread that serves."""
        return self._thread is not None and not self.is_stopped

    @property
    def is_stopped(self) -> bool:
        """True when nothing will be served any more: in a forked child, or when the interpreter ends."""
        return self._abandoned or sys.is_finalizing()

    def start(self) -> None:
        """The thread runs, if one can be started."""
        if self._thread is None:
            thread = RealThread(self._run, name="otel-audit-commit")
            with contextlib.suppress(RuntimeError):  # the interpreter is about to end: nothing new is started
                thread.start()
                self._thread = thread

    def commit(self, stream: StreamWriter, seq: int) -> Commit | None:
        """Have this line synced, together with all others that are written by then.

        None when it was synced here, since no thread does it.

        Raises:
            SyncFailed: it is in the chain, but not known to be durable.
        """
        if not self.is_running:
            self._sync_here(stream, seq)
            return None
        commit = Commit(stream, seq, self)
        self._waiting.put(commit)
        if self._closed:  # perhaps behind its last turn: all that was written is synced, as at every close
            commit.served(None)
        return commit

    def _sync_here(self, stream: StreamWriter, seq: int) -> None:
        me = get_ident()
        try:
            self._inside.add(me)
            with self._lock:
                if not stream.is_settled(seq):  # else it was closed in this moment, which synced it
                    stream.sync_at_once()
        except OSError as error:
            raise _sync_failed(stream, error) from error
        finally:
            self._inside.discard(me)
        if (failed := stream.sync_error(seq)) is not None:
            raise _sync_failed(stream, failed) from failed

    def ask(self, stream: StreamWriter) -> None:
        """Have what is written synced; nobody waits for it."""
        self._waiting.put(stream)

    def close(self) -> None:
        """The thread ends when it has served who waits now. The streams are closed before."""
        self._closed = True
        self._waiting.put(None)

    def abandon(self) -> None:
        """In a forked child, where the thread does not run."""
        self._abandoned = True

    def _run(self) -> None:
        me = get_ident()
        self._inside.add(me)
        try:
            self._serve()
        finally:
            self._inside.discard(me)

    def _serve(self) -> None:
        goes_on = True
        while goes_on:
            commits: list[Commit] = []
            streams: dict[StreamWriter, OSError | None] = {}
            for asked in self._all_waiting():
                match asked:
                    case None:
                        goes_on = False
                    case Commit():
                        commits.append(asked)
                        streams[asked.stream] = None
                    case StreamWriter():
                        streams[asked] = None
            for stream in streams:
                streams[stream] = self._sync(stream)
            for commit in commits:
                commit.served(streams[commit.stream])

    def _all_waiting(self) -> list[Commit | StreamWriter | None]:
        waiting = [self._waiting.get()]
        with contextlib.suppress(Empty):
            while True:
                waiting.append(self._waiting.get_nowait())
        return waiting

    def _sync(self, stream: StreamWriter) -> OSError | None:
        """Why nothing could be synced; None also when a sync failed, which the stream knows."""
        try:
            with self._lock:
                sync = stream.begin_sync()
            if sync is not None:
                sync.run()
                with self._lock:
                    stream.end_sync(sync)
        except OSError as error:
            return error
        except Exception as error:  # a fault of ours must not end the thread: who waits is told, the next one tries
            return OSError(errno.EIO, repr(error))
        return None


def _sync_failed(stream: StreamWriter, error: OSError) -> SyncFailed:
    return SyncFailed(error.errno, error.strerror, str(stream.files.directory))


_INTERVAL_S = 1.0


class Syncer:
    """Syncs the open segment once a second while lines are written, and closes the ones that are full. Daemon.

    `look_after` is a method that is called each second, for as long as its object lives. `syncs`: false where the
    writer syncs, and must not be disturbed: the kernel tells an error only once.
    """

    def __init__(self, directory: Path, look_after: weakref.WeakMethod[Callable[[], None]], *, syncs: bool) -> None:
        self._directory = directory
        self._look_after = look_after
        self._syncs = syncs
        self._retired: deque[OpenSegment] = deque()
        self._stream: StreamWriter | None = None
        # Not an Event, whose lock an asynchronous exception may leave locked: the next close would wait for ever.
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._is_closed = False
        self._thread: RealThread | None = None
        self._synced: tuple[OpenSegment | None, int, int] = (None, -1, 0)
        self._named: Path | None = None  # the segment whose name is known to be on the disk
        self._has_failed = False

    def follow(self, stream: StreamWriter) -> None:
        """Sync this stream from now on, and look after it each second."""
        self._stream = stream
        if self._thread is None:
            thread = RealThread(self._run, name="otel-audit-sync")
            with contextlib.suppress(RuntimeError):  # the interpreter is about to end: nothing new is started
                thread.start()
                self._thread = thread

    def retire(self, segment: OpenSegment) -> None:
        """This segment is left: it will be closed, and synced before that unless its writer has done so."""
        if self._thread is None or self._is_closed:
            self._finish(segment)
        else:
            self._retired.append(segment)

    def close(self) -> None:
        """Every segment that is retired, now or later, is synced and closed at once. The thread ends by itself."""
        self._is_closed = True
        self._ended.put(None)
        self._stream = None
        self._finish_retired()

    def abandon(self) -> None:
        """In a forked child, where no thread runs: close the descriptors."""
        self._stream = None
        while self._retired:
            self._retired.popleft().close()

    def _run(self) -> None:
        while self._goes_on():
            self._finish_retired()
            if self._syncs:
                self._sync()
            look_after = self._look_after()
            if look_after is None:
                return
            look_after()
            del look_after  # or the journal would live for as long as this thread waits

    def _goes_on(self) -> bool:
        """True after a second, false as soon as it is closed."""
        with contextlib.suppress(Empty):
            self._ended.get(timeout=_INTERVAL_S)
        return not self._is_closed

    def _finish_retired(self) -> None:
        while self._retired:
            with contextlib.suppress(IndexError):  # the closing thread took it
                self._finish(self._retired.popleft())

    def _finish(self, segment: OpenSegment) -> None:
        try:
            if self._syncs:
                self._run_sync(segment, segment.descriptor)
                segment.is_synced = segment.sync_error is None
        finally:
            try:
                segment.close()
            except OSError as error:
                self._failed_for(segment, error)

    def _run_sync(self, segment: OpenSegment, descriptor: int) -> None:
        """Sync a segment and keep what came of it. Until that is kept, others see that a sync is under way."""
        segment.is_being_synced = True
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            self._failed_for(segment, error)
        except BaseException:  # it may have failed before this came, and the kernel tells an error only once
            segment.sync_error = OSError(errno.EINTR, "the sync was interrupted")
            raise
        finally:
            segment.is_being_synced = False

    def _failed_for(self, segment: OpenSegment, error: OSError) -> None:
        segment.is_synced, segment.sync_error = False, error
        self._say(error)

    def _sync(self) -> None:
        stream = self._stream
        if stream is None:
            return
        segment = stream.segment
        seen = (segment, segment.descriptor, stream.head.seq)
        if seen == self._synced:
            return
        try:
            descriptor = os.dup(segment.descriptor)
        except OSError:
            return  # closed or rotated in this moment
        self._synced = seen
        try:
            self._run_sync(segment, descriptor)
            if segment.path != self._named:  # or a loss of power could take the whole file
                sync_directory(segment.path.parent)
                self._named = segment.path
        except OSError as error:
            self._failed_for(segment, error)
        finally:
            os.close(descriptor)

    def _say(self, error: OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            print(f"otel-audit: {self._directory}: write-back failed: {error}", file=sys.stderr, flush=True)


class Background:
    """The syncer of one stream, and with `fsync` its committer; neither runs before `start`.

    `lock` and `inside` are the journal's, see `Committer`; `look_after` is its method, see `Syncer`.
    """

    committer: Committer | None = None

    def __init__(
        self,
        directory: Path,
        durability: Durability,
        *,
        lock: threading.Lock,
        inside: set[int],
        look_after: weakref.WeakMethod[Callable[[], None]],
    ) -> None:
        self.syncer = Syncer(directory, look_after, syncs=durability is Durability.OS)
        if durability is Durability.FSYNC:
            self.committer = Committer(lock, inside)

    def start(self, stream: StreamWriter) -> None:
        """From now on the threads work for this stream, if they can be started. Without the journal's lock."""
        self.syncer.follow(stream)
        if self.committer is not None:
            self.committer.start()

    def end(self, stream: StreamWriter, *, leaves: bool = False) -> None:
        """The stream is finished, or is left as it is, and the threads will end. May be called again."""
        self.syncer.close()
        if leaves:
            stream.leave()
        else:
            stream.finish()
        if self.committer is not None:
            self.committer.close()

    def abandon(self) -> None:
        """In a forked child, where no thread runs."""
        self.syncer.abandon()
        if self.committer is not None:
            self.committer.abandon()

    def __del__(self) -> None:
        if self.committer is not None:  # of a journal that nobody closed
            self.committer.close()
