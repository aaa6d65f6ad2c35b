"""A disk that can be told to take its time, or to fail."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

__all__ = ["SlowDisk"]


class SlowDisk:
    """Stands for `os.fdatasync` and `os.fsync`: a sync of a segment waits while `gate` is closed, or fails.

    `calls` has the names of the files and directories in the order in which their syncs ended, `tried` also those that
    failed, by inode.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)  # one for each sync that has reached the gate
        self.fails = False
        self.calls: list[str] = []
        self.tried: list[tuple[int, bool]] = []
        self._fdatasync, self._fsync = os.fdatasync, os.fsync
        patch.setattr(os, "fdatasync", self.fdatasync)
        patch.setattr(os, "fsync", self.fsync)

    def fdatasync(self, descriptor: int) -> None:
        self.entered.release()
        assert self.gate.wait(60)
        self.tried.append((os.fstat(descriptor).st_ino, self.fails))
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fdatasync(descriptor)
        self.calls.append(_name(descriptor))

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self.calls.append(_name(descriptor))

    def wait_until_entered(self) -> None:
        """A sync has begun since the last call of this."""
        assert self.entered.acquire(timeout=30)

    def tried_again(self) -> set[int]:
        """The inodes that were synced once more after a sync of them had failed."""
        failed: set[int] = set()
        again: set[int] = set()
        for inode, fails in self.tried:
            if inode in failed:
                again.add(inode)
            if fails:
                failed.add(inode)
        return again


def _name(descriptor: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
