"""The threads that work for the open stream. One tends and syncs it, and the other syncs for callers that wait.

In `os` mode an acknowledged write is in the page cache. Without the `Syncer`, the kernel would write it back some
thirty seconds later, and nobody would see an error of that. A removed file would be noticed only with the next event,
which may never come.

With `fsync`, the `Committer` does one `fdatasync` for every caller that waits for one. Callers do not do it themselves,
since each may be interrupted at any step, and a failed sync must not go unnoticed because of that.
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
from otel_audit.threads import FORKS_WAIT, RealThread, SimpleQueue, acquired, get_ident, new_lock

__all__ = ["COMMIT_TIMEOUT_S", "Background", "Commit", "Committer", "Syncer"]


# The kernel gives a disk this long for one command before it resets it. After that, the disk is gone.
COMMIT_TIMEOUT_S: Final = 30.0
_LOOK_S: Final = 0.1


class Commit:
    """The wait for one line to become durable. For one waiter, which is a thread or a callback."""

    def __init__(self, stream: StreamWriter, seq: int, committer: Committer) -> None:
        self.stream = stream
        self.seq = seq
        self._committer = committer
        self._served = new_lock()
        self._served.acquire()
        self._callback: Callable[[], object] | None = None
        self._failure: OSError | None = None

    def served(self, failure: OSError | None) -> None:
        """Return True if its sync is over, successful or not, or will not happen because of an earlier failure."""
        self._failure = failure
        with contextlib.suppress(RuntimeError):  # by the thread that closed the committer at the same moment
            self._served.release()
        callback = self._callback
        if callback is not None:
            callback()

    def call_when_served(self, callback: Callable[[], object]) -> None:
        """Have `callback` called from another thread when the sync is over. It may be called twice, or at once."""
        self._callback = callback
        if not self._served.locked():
            callback()

    def wait(self, timeout_s: float) -> None:
        """Return once the line is durable.

        Raises:
            SyncFailed: it is in the chain, but may not be durable.
        """
        deadline = time.monotonic() + timeout_s
        while not acquired(self._served, min(_LOOK_S, deadline - time.monotonic())):
            # The stream was closed, or a signal handler inside this wait has forked, and this is the child.
            if self.stream.is_settled(self.seq) or self._committer.is_stopped or time.monotonic() >= deadline:
                break
        self.check()

    def check(self) -> None:
        """Return if the line is durable now.

        Raises:
            SyncFailed: it is in the chain, but may not be durable.
        """
        if not self.stream.is_settled(self.seq):
            error = self._failure or TimeoutError(errno.ETIMEDOUT, "the disk took too long")
            raise _sync_failed(self.stream, error) from error
        if (failed := self.stream.sync_error(self.seq)) is not None:
            raise _sync_failed(self.stream, failed) from failed


class Committer:
    """The thread that syncs for all callers of one journal.

    It takes the journal's `lock` before and after a sync, not during it.

    It is a daemon that runs from `start` until `close`. All that time it is among the threads `inside` the journal, so
    that an event logged in it, by a `__del__` that the garbage collector runs there, does not wait for it.
    """

    def __init__(self, lock: threading.Lock, inside: set[int]) -> None:
        self._lock = lock
        self._inside = inside
        # Not a Condition, since a signal handler that logs may come in while its own thread is inside.
        self._waiting: SimpleQueue[Commit | StreamWriter | None] = SimpleQueue()
        self._thread: RealThread | None = None
        self._abandoned = False
        self._closed = False

    @property
    def is_running(self) -> bool:
        """Return True while there is a thread that serves."""
        return self._thread is not None and not self.is_stopped

    @property
    def is_stopped(self) -> bool:
        """Return True if nothing will be served any more: in a forked child, or when the interpreter is ending."""
        return self._abandoned or sys.is_finalizing()

    def start(self) -> None:
        """Start the thread, if one can be started."""
        if self._thread is None:
            thread = RealThread(self._run, name="otel-audit-commit")
            with contextlib.suppress(RuntimeError):  # the interpreter is about to end: nothing new is started
                thread.start()
                self._thread = thread

    def commit(self, stream: StreamWriter, seq: int) -> Commit | None:
        """Have this line synced, together with all others that are written by then.

        Return None if it was synced here, since no thread does it.

        Raises:
            SyncFailed: it is in the chain, but may not be durable.
        """
        if not self.is_running:
            self._sync_here(stream, seq)
            return None
        commit = Commit(stream, seq, self)
        self._waiting.put(commit)
        if self._closed:  # perhaps after its last turn, so everything written is synced, as at every close
            commit.served(None)
        return commit

    def _sync_here(self, stream: StreamWriter, seq: int) -> None:
        me = get_ident()
        try:
            self._inside.add(me)
            with self._lock:
                if not stream.is_settled(seq):  # otherwise it was closed at this moment, which synced it
                    stream.sync_at_once()
        except OSError as error:
            raise _sync_failed(stream, error) from error
        finally:
            self._inside.discard(me)
        if (failed := stream.sync_error(seq)) is not None:
            raise _sync_failed(stream, failed) from failed

    def ask(self, stream: StreamWriter) -> None:
        """Have the written lines synced. Nobody waits for it."""
        self._waiting.put(stream)

    def close(self) -> None:
        """Let the thread end once it has served the current waiters. Close the streams first."""
        self._closed = True
        self._waiting.put(None)

    def abandon(self) -> None:
        """Give up in a forked child, where the thread does not run."""
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
        """Return why nothing could be synced. Return None also if a sync failed, which the stream knows."""
        try:
            with self._lock:
                sync = stream.begin_sync()
            if sync is not None:
                sync.run()
                with self._lock:
                    stream.end_sync(sync)
        except OSError as error:
            return error
        except (
            Exception
        ) as error:  # a fault of ours must not end the thread: the waiters get the error, and the next ones try again
            return OSError(errno.EIO, repr(error))
        return None


def _sync_failed(stream: StreamWriter, error: OSError) -> SyncFailed:
    return SyncFailed(error.errno, error.strerror, str(stream.files.directory))


_INTERVAL_S = 1.0
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Syncer:
    """A daemon that syncs the open segment once a second while lines are written, and closes full ones.

    `look_after` is a method that is called each second, as long as its object lives. `syncs` is False if the writer
    syncs and must not be disturbed, since the kernel reports an error only once.
    """

    def __init__(self, directory: Path, look_after: weakref.WeakMethod[Callable[[], None]], *, syncs: bool) -> None:
        self._directory = directory
        self._look_after = look_after
        self._syncs = syncs
        self._retired: deque[OpenSegment] = deque()
        self._stream: StreamWriter | None = None
        # Not an Event, whose lock an asynchronous exception may leave locked, so that the next close would wait for
        # ever.
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._is_closed = False
        self._thread: RealThread | None = None
        self._synced: tuple[OpenSegment | None, int, int] = (None, -1, 0)
        self._named: Path | None = None  # the segment whose name is known to be durable
        self._has_failed = False

    def follow(self, stream: StreamWriter) -> None:
        """Sync this stream from now on, and tend it each second."""
        self._stream = stream
        if self._thread is None:
            thread = RealThread(self._run, name="otel-audit-sync")
            with contextlib.suppress(RuntimeError):  # the interpreter is about to end: nothing new is started
                thread.start()
                self._thread = thread

    def retire(self, segment: OpenSegment) -> None:
        """Take over a segment that the writer has ended.

        It is closed, and synced first unless the writer has done so.
        """
        if self._thread is None or self._is_closed:
            self._finish(segment)
        else:
            self._retired.append(segment)

    def close(self) -> None:
        """Sync and close each retired segment, now or later, without delay. The thread ends by itself."""
        self._is_closed = True
        self._ended.put(None)
        self._stream = None
        self._finish_retired()

    def abandon(self) -> None:
        """Close the descriptors in a forked child, where no thread runs."""
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
            del look_after  # otherwise the journal would live as long as this thread waits

    def _goes_on(self) -> bool:
        """Return True after a second, or False as soon as the syncer is closed."""
        with contextlib.suppress(Empty):
            self._ended.get(timeout=_INTERVAL_S)
        return not self._is_closed

    def _finish_retired(self) -> None:
        while self._retired:
            with contextlib.suppress(IndexError):  # the closing thread has taken it
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
        except BaseException:  # it may have failed earlier, and the kernel reports an error only once
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
            return  # closed or rotated at this moment
        self._synced = seen
        try:
            self._run_sync(segment, descriptor)
            if segment.path != self._named:  # otherwise a loss of power could take the whole file
                sync_directory(segment.path.parent)
                self._named = segment.path
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                self._synced = (None, -1, 0)  # the lines are on the disk, and the name of their file has to wait
            else:
                self._failed_for(segment, error)
        finally:
            os.close(descriptor)

    def _say(self, error: OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            with FORKS_WAIT:
                print(f"otel-audit: {self._directory}: write-back failed: {error}", file=sys.stderr, flush=True)


class Background:
    """The syncer of one stream, and with `fsync` its committer. Neither runs before `start`.

    `lock` and `inside` belong to the journal, see `Committer`. `look_after` is a method of it, see `Syncer`.
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
        """Make the threads work for this stream, if they can be started. The journal's lock is not held."""
        self.syncer.follow(stream)
        if self.committer is not None:
            self.committer.start()

    def end(self, stream: StreamWriter, *, leaves: bool = False) -> None:
        """Let the threads end, since the stream is finished or is left as it is. This may be called again."""
        self.syncer.close()
        if leaves:
            stream.leave()
        else:
            stream.finish()
        if self.committer is not None:
            self.committer.close()

    def abandon(self) -> None:
        """Give up in a forked child, where no thread runs."""
        self.syncer.abandon()
        if self.committer is not None:
            self.committer.abandon()

    def __del__(self) -> None:
        if self.committer is not None:  # if nobody closed the journal
            self.committer.close()
