"""What is said on stderr: losses, a blocked export, a setting that is ignored. Each kind at most once a minute.

Never through `logging`: a handler there may be our own, and the notice would come back as an event.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from otel_audit.terminal import escaped
from otel_audit.threads import get_ident, new_lock

__all__ = ["Notices"]

_INTERVAL_S = 60.0
_TURN_MAX_S = 1.0  # how long a notice waits for another one: stderr may be a pipe that nobody reads


class Notices:
    """Says each kind of notice at once, and then at most once a minute. Any thread; fork-safe; never raises."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._said_at: dict[str, float] = {}
        self._lock = new_lock()
        self._inside: set[int] = set()
        self._pid = os.getpid()

    def say(self, kind: str, text: str) -> None:
        """Write one line to stderr, unless this kind was said less than a minute ago."""
        if os.getpid() != self._pid:
            self._begin()  # the lock may be held by a thread of the parent
        me = get_ident()
        if me in self._inside:  # a signal handler inside `say`: its notice can be done without
            return
        try:
            self._inside.add(me)
            if self._is_due(kind) and self._lock.acquire(timeout=_TURN_MAX_S):
                try:
                    _write(text)
                finally:
                    self._lock.release()
        except Exception:
            return  # stderr is closed: there is nobody to tell
        finally:
            self._inside.discard(me)

    def _is_due(self, kind: str) -> bool:
        now = self._clock()
        if now - self._said_at.get(kind, -_INTERVAL_S) < _INTERVAL_S:
            return False
        self._said_at[kind] = now  # also of one whose turn does not come: not every call is to wait for it
        return True


def _write(text: str) -> None:
    stream = sys.stderr
    if stream is not None:  # without one, `print` would take stdout, which may carry a protocol
        print(f"otel-audit: {escaped(text)}", file=stream, flush=True)
