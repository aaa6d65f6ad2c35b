"""One `fdatasync` of a segment, while its writer goes on."""

from __future__ import annotations

import os
import sys
from typing import Final

from otel_audit.journal.cursor import Position
from otel_audit.threads import new_lock

__all__ = ["SegmentSync"]

_LOOK_S: Final = 0.1


class SegmentSync:
    """A sync of a segment that covers everything before `end`; under way until `run` has returned.

    It has a descriptor of its own, so that the writer may close its one meanwhile. Both share the open file, and with
    it the error of a failed write-back, which the kernel tells only once: nobody else may sync until this is over.

    Raises:
        OSError: the process has no descriptor left; nothing is under way.
    """

    def __init__(self, descriptor: int, end: Position) -> None:
        self.end = end
        self.error: OSError | None = None
        self._descriptor = os.dup(descriptor)
        # Not an Event: an asynchronous exception in `wait` could leave its lock locked, and `run` would never end.
        self._is_over = False
        self._under_way = new_lock()
        self._under_way.acquire()

    def run(self) -> None:
        """The sync is over; `error` says why it failed, if it did."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.error = error
        finally:
            self.abandon()
            self._is_over = True
            self._under_way.release()

    def abandon(self) -> None:
        """Close the descriptor; in a forked child, where nobody runs it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def wait(self) -> bool:
        """Wait until it is over. False when it never will be: the interpreter ends, and has stopped the thread."""
        while not self._is_over:
            if self._under_way.acquire(timeout=_LOOK_S):
                self._under_way.release()
            elif sys.is_finalizing():
                return False
        return True
