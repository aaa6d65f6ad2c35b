"""One `fdatasync` of a segment, while its writer goes on."""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

from otel_audit.journal.cursor import Position

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
        self._over = threading.Event()

    def run(self) -> None:
        """The sync is over; `error` says why it failed, if it did."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.error = error
        finally:
            os.close(self._descriptor)
            self._over.set()

    def wait(self) -> bool:
        """Wait until it is over. False when it never will be: the interpreter ends, and has stopped the thread."""
        while not self._over.wait(_LOOK_S):
            if sys.is_finalizing():
                return False
        return True
