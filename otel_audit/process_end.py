"""The normal end of this process: every trail that is open is closed there, so that it delivers what it has.

A process that `multiprocessing` forks, from its fork server too, runs no exit handlers, but finalizers of its own.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref

from otel_audit.notices import Notices
from otel_audit.trail import Trail

__all__ = ["close_at_end"]

# After the finalizers of `multiprocessing` itself, which wait for the children of the process.
_LATE = -100

# In a forked child too: to close a trail there that nothing was logged to does no more than to forget it.
_open: weakref.WeakSet[Trail] = weakref.WeakSet()
_is_watched = False


def close_at_end(trail: Trail) -> None:
    """The trail is closed at the normal end of this process, and of each that is forked from it."""
    _open.add(trail)
    _watch_multiprocessing()


def _close_all() -> None:
    for trail in list(_open):
        try:
            trail.close()
        except Exception as error:
            Notices().say("close", f"closing failed: {error!r}")


def _watch_multiprocessing() -> None:
    """Every process that `multiprocessing` starts from here on finalizes its trails, and so does this one.

    Nothing happens where it was not imported: then it has started no process, and did not start this one.
    """
    global _is_watched
    # Not by an import, which could wait for ever in a forked child for the lock of a thread that is not there.
    register_after_fork = getattr(sys.modules.get("multiprocessing.util"), "register_after_fork", None)
    if _is_watched or register_after_fork is None:
        return
    _is_watched = True
    # Called when the process has forgotten the finalizers of its parent, and those made while its module was imported.
    register_after_fork(_open, _finalize)
    _finalize()


def _finalize(_: object = None) -> None:
    process, util = sys.modules["multiprocessing.process"], sys.modules["multiprocessing.util"]
    if process.parent_process() is not None:  # the first process runs exit handlers
        util.Finalize(None, _close_all, exitpriority=_LATE)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_watch_multiprocessing)
