"""Let Ctrl-C break off a question: Python handles no signal while DuckDB works, so the main thread only waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

__all__ = ["Interruption"]

_AGAIN_S: Final = 0.05

T = TypeVar("T")


class Interruption:
    """Runs what `stop` can break off. To be closed."""

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._worker = ThreadPoolExecutor(1, "otel-audit-query")

    def run(self, ask: Callable[[], T]) -> T:
        """Return what `ask` returns. In the main thread, Ctrl-C breaks it off, and is raised once it has ended."""
        if threading.current_thread() is not threading.main_thread():
            return ask()
        asked = self._worker.submit(ask)
        try:
            return asked.result()
        except KeyboardInterrupt:
            while not asked.done():  # it may not have begun when it is told to stop
                self._stop()
                wait([asked], _AGAIN_S)
            raise

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown()
