"""Children that outlive the writer that forked them: they come to this process, and end with the run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["adopted_orphans", "orphans"]

_PR_SET_CHILD_SUBREAPER: Final = 36  # Source: prctl(2)
_CHILDREN: Final = Path("/proc/self/task")


@contextmanager
def adopted_orphans(command: str) -> Iterator[None]:
    """Processes with this word in their command line are children of this one when their parent is gone.

    Those that are left at the end are killed.
    """
    _adopt(True)
    try:
        yield
    finally:
        while left := orphans(command):  # one that is killed may leave another one
            for pid in left:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        _adopt(False)


def orphans(command: str) -> list[int]:
    """The pids of the children of this process that run and have this word in their command line."""
    return [pid for pid in _children() if command in _words_of(pid)]


def _adopt(yes: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _children() -> Iterator[int]:
    for thread in _CHILDREN.iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield from map(int, (thread / "children").read_text().split())


def _words_of(pid: int) -> list[str]:
    """Its command line; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except FileNotFoundError:
        return []
