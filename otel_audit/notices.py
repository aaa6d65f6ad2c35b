"""What is said on stderr: losses, a blocked export, a setting that is ignored. Each kind at most once a minute.

Never through `logging`: a handler there may be our own, and the notice would come back as an event.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

__all__ = ["Notices"]

_INTERVAL_S = 60.0


class Notices:
    """Says each kind of notice at once, and then at most once a minute. Any thread; never raises."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def say(self, kind: str, text: str) -> None:
        """Write one line to stderr, unless this kind was said less than a minute ago."""
        now = self._clock()
        if not self._lock.acquire(blocking=False):  # a signal handler inside `say`: its notice can be done without
            return
        try:
            if now - self._said_at.get(kind, -_INTERVAL_S) < _INTERVAL_S:
                return
            self._said_at[kind] = now
            print(f"otel-audit: {text}", file=sys.stderr, flush=True)
        except Exception:
            return  # stderr is closed: there is nobody to tell
        finally:
            self._lock.release()
