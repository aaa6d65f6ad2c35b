"""A process whose threads are stopped, again and again, by a soft time limit, each somewhere inside an append.

Prints the events that were acknowledged on stdout.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import sys
import threading
import time
from pathlib import Path

from tests.journal.writing import a_journal, append


class SoftTimeLimit(Exception):
    """What a task queue raises in the thread of a task that takes too long."""


class Writers:
    """Threads that write until they are told to stop, whatever is raised in them."""

    def __init__(self, directory: Path) -> None:
        self.acknowledged: set[str] = set()
        self.journal = a_journal(directory)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write_whatever_comes, args=(index,)) for index in range(4)]
        append(self.journal, "first")
        for thread in self._threads:
            thread.start()

    def limit_one(self) -> None:
        """A limit comes in one of them, wherever that is."""
        victim = random.choice(self._threads).ident
        assert victim is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim), ctypes.py_object(SoftTimeLimit))

    def end(self) -> None:
        """None of them waits for ever."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        append(self.journal, "last")
        self.journal.close()

    def _write(self, name: str) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                append(self.journal, f"{name}-{number}")
                self.acknowledged.add(f"{name}-{number}")
            except SoftTimeLimit:
                continue

    def _write_whatever_comes(self, index: int) -> None:
        for attempt in itertools.count():
            try:
                if self._stop.is_set():
                    return
                self._write(f"{index}.{attempt}")
            except SoftTimeLimit:  # outside of the inner `try`
                continue


def main(directory: Path, limits: int) -> None:
    writers = Writers(directory)
    limited = 0
    while limited < limits or len(writers.acknowledged) < limits:
        writers.limit_one()
        limited += 1
        time.sleep(0.001)
    writers.end()
    print("\n".join(writers.acknowledged))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
