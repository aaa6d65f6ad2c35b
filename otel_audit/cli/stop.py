"""Ends a command that goes on and on: SIGTERM and Ctrl-C ask, and the command ends when it can."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, Self

__all__ = ["Stop"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """While entered, SIGTERM and Ctrl-C ask for an end instead of making one."""

    def __init__(self) -> None:
        self.asked = False
        self._asked: SimpleQueue[None] = SimpleQueue()  # its `put` may come in while the same thread is in its `get`
        self._former: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether an end was asked for."""
        return self.asked

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when an end is asked for, or after so many seconds."""
        try:
            self._asked.get(timeout=timeout_s)
        except Empty:
            return

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._asked.put(None)

    def __enter__(self) -> Self:
        self._former = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
