"""Group commit: one `fdatasync` for every caller that waits for one, in a thread of its own.

A caller may be interrupted at any step, and a failed sync must not go unnoticed with it: so none of them does it.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty
from typing import Final

from otel_audit.journal.stream import StreamWriter, SyncFailed
from otel_audit.threads import RealThread, SimpleQueue, acquired, get_ident, new_lock

__all__ = ["COMMIT_TIMEOUT_S", "Commit", "Committer"]

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
