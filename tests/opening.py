"""Which thread opens which file: noted, or held there for as long as a test wants."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Opened", "Opening", "opening"]

Opened = tuple[str, str]  # the name of the thread, and that of the file


class Opening:
    """What is opened in one directory."""

    def __init__(self, directory: Path, holds: Callable[[str, str], bool]) -> None:
        self.opened: list[Opened] = []
        self.is_held = threading.Event()
        self.may_go_on = threading.Event()
        self._directory = str(directory)
        self._holds = holds

    def note(self, path: str) -> None:
        """Called by the thread that is about to open the file."""
        directory, name = os.path.split(path)
        if directory != self._directory:
            return
        thread = threading.current_thread().name
        self.opened.append((thread, name))
        if self._holds(thread, name):
            self.is_held.set()
            self.may_go_on.wait(60)
            self.is_held.clear()


_now: list[Opening] = []


def _look(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _now and isinstance(arguments[0], str | os.PathLike):
        for each in _now:
            each.note(os.fspath(arguments[0]))


sys.addaudithook(_look)  # once: there is no way to take a hook back


@contextmanager
def opening(directory: Path, holds: Callable[[str, str], bool] = lambda thread, name: False) -> Iterator[Opening]:
    """Note what is opened inside; a thread for which `holds` is true waits there until `may_go_on` is set."""
    found = Opening(directory, holds)
    _now.append(found)
    try:
        yield found
    finally:
        found.may_go_on.set()
        _now.remove(found)
