"""The threads that work for the stream that is open: one syncs or looks after it, one serves those who wait for it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from otel_audit.journal.commit import Committer
from otel_audit.journal.open_stream import OpenStream
from otel_audit.journal.stream import StreamWriter
from otel_audit.journal.syncer import Syncer
from otel_audit.settings import Durability

__all__ = ["Background"]


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

    def start(self, stream: OpenStream) -> None:
        """From now on the threads work for this stream, if they can be started. Without the journal's lock."""
        self.syncer.follow(stream if isinstance(stream, StreamWriter) else None)
        if self.committer is not None:
            self.committer.start()

    def end(self, stream: OpenStream, *, leaves: bool = False) -> None:
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
