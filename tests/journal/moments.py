"""Do something just before this process makes a system call, as another process may at that moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["before", "before_lock"]

_acts: list[tuple[str, Callable[..., object]]] = []


def _notice(event: str, arguments: tuple[object, ...]) -> None:
    if _acts:
        for awaited, act in _acts:
            if awaited == event:
                act(*arguments)


sys.addaudithook(_notice)  # once: there is no way to take a hook back


@contextmanager
def before(event: str, act: Callable[..., object]) -> Iterator[None]:
    """Call `act` with the arguments of this audit event before each such call inside the block."""
    _acts.append((event, act))
    try:
        yield
    finally:
        _acts.remove((event, act))


@contextmanager
def before_lock(path: Path, act: Callable[[int], object]) -> Iterator[None]:
    """Call `act` with the operation before each `flock` of this file inside the block."""

    def locked(descriptor: int, operation: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            act(operation)

    with before("fcntl.flock", locked):
        yield
