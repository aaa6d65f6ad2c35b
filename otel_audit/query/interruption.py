"""Let Ctrl-C end a question. Python handles no signal while DuckDB works, so another thread runs the question."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

__all__ = ["Interruption"]

_AGAIN_S: Final = 0.05

T = TypeVar("T")


class Interruption:
    """Run calls that `stop` can end. Close it afterwards."""

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._worker = ThreadPoolExecutor(1, "otel-audit-query")

    def run(self, ask: Callable[[], T]) -> T:
        """Return the result of `ask`. In the main thread, Ctrl-C ends `ask`, and is raised once that has ended."""
        if threading.current_thread() is not threading.main_thread():
            return ask()
        asked = self._worker.submit(ask)
        try:
            return asked.result()
        except KeyboardInterrupt:
            while not asked.done():  # again, since it may not have begun at the first call
                self._stop()
                wait([asked], _AGAIN_S)
            raise

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown()
