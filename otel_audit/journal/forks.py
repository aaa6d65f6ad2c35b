"""A fork waits until no journal is in the middle of an append: the child would get a copy of a half-moved state."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Protocol

__all__ = ["Forkable", "begin_anew", "process", "watch"]


class Forkable(Protocol):
    """What must be held still while its process forks."""

    def hold(self) -> Iterator[None]:
        """A generator that holds it still from its first step until it is closed."""

    def held(self) -> None:
        """In the parent, after a fork: what had to wait is done."""

    def forked(self) -> None:
        """In the child: what belongs to the parent is left to it."""


_times_reopened = 0


def process() -> tuple[int, int]:
    """Tell this process from its parent, and from another one with the same memory: connections are not shared."""
    return os.getpid(), _times_reopened


def begin_anew() -> None:
    """From now on this is another process than before, since its memory was copied."""
    global _times_reopened
    _times_reopened += 1


class _Holds(threading.local):
    """What this thread holds still: two may fork at the same time."""

    now: tuple[Iterator[None], ...] = ()


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_holds = _Holds()


def watch(forkable: Forkable) -> None:
    """From now on, for as long as it lives, no fork of this process runs through the middle of what it does."""
    _watched.add(forkable)


def _before() -> None:
    for forkable in sorted(_watched, key=id):  # in one order, or two that fork could wait for each other
        hold = forkable.hold()
        # Kept before it holds anything: whatever interrupts this, the end of the fork lets go of it.
        _holds.now = (*_holds.now, hold)
        next(hold, None)


def _after_in_parent() -> None:
    for forkable in list(_watched):
        forkable.held()


def _after_in_child() -> None:
    _holds.now = ()
    for forkable in list(_watched):
        forkable.forked()


os.register_at_fork(
    before=_before,
    # Not a function in Python, which Ctrl-C could stop at its first step, with every journal locked for ever: the
    # generators are closed when nothing refers to them any more.
    after_in_parent=partial(setattr, _holds, "now", ()),
    after_in_child=_after_in_child,
)
os.register_at_fork(after_in_parent=_after_in_parent)
