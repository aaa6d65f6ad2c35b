"""What is done for the open stream once a second, in the background.

A write that was acknowledged in `os` mode is in the page cache. Without this thread the kernel would write it back some
thirty seconds later, and an error of that write-back would be seen by nobody. A file that was removed would be noticed
with the next event only, which may never come.

The threads that work for the stream that is open: one syncs or looks after it, one serves those who wait for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty

from otel_audit.journal.commit import Committer
from otel_audit.journal.files import sync_directory
from otel_audit.journal.segment import OpenSegment
from otel_audit.journal.stream import StreamWriter
from otel_audit.settings import Durability
from otel_audit.threads import RealThread, SimpleQueue

__all__ = ["Background", "Syncer"]


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
        self._failed = False

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
            try:
                if self._syncs:
                    os.fdatasync(segment.descriptor)
            finally:
                segment.close()
        except OSError as error:
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
            os.fdatasync(descriptor)
            if segment.path != self._named:  # or a loss of power could take the whole file
                sync_directory(segment.path.parent)
                self._named = segment.path
        except OSError as error:
            segment.is_distrusted = True
            self._say(error)
        finally:
            os.close(descriptor)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
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
        """The stream has ended, or is left as it is, and the threads will end. May be called again."""
        self.syncer.close()
        if leaves:
            stream.leave()
        else:
            stream.close()
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
