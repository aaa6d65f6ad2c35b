"""That the end has begun: said by whoever closes, and waited for by one thread."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty

from otel_audit.threads import SimpleQueue

__all__ = ["Closing"]


class Closing:
    """Set once. Not an `Event`, whose lock an asynchronous exception may leave locked: the next close would hang."""

    def __init__(self) -> None:
        self._is_set = False
        self._said: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """The end has begun. Any thread, also a signal handler inside of this call."""
        self._is_set = True
        self._said.put(None)

    def is_set(self) -> bool:
        """Whether it has begun."""
        return self._is_set

    def is_set_within(self, timeout_s: float) -> bool:
        """Wait for it, so many seconds at the most. One thread."""
        if not self._is_set:
            with suppress(Empty):
                self._said.get(timeout=timeout_s)
        return self._is_set
