"""How long to wait before a destination is tried again."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

_FIRST_S = 0.5
_RETRY_AFTER_MAX_S = 300.0


class Backoff:
    """Doubles from half a second up to a cap, with full jitter in the upper half, for ever.

    Jitter keeps a hundred processes from coming back in the same moment. Source: OTLP specification, "All Errors".
    """

    def __init__(self, cap_s: float) -> None:
        self._cap_s = cap_s
        self._next_s = _FIRST_S

    def failed(self, retry_after_s: float | None = None) -> float:
        """The seconds to wait after one more failure; what the server asked for comes first, up to five minutes.

        A server that asks to be tried at once is left alone as after a first failure.
        """
        wait_s = min(self._next_s, self._cap_s)
        self._next_s = min(self._next_s * 2, self._cap_s)
        if retry_after_s is not None:
            return max(min(retry_after_s, _RETRY_AFTER_MAX_S), _FIRST_S)
        return wait_s * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """The next failure waits as the first one."""
        self._next_s = _FIRST_S
