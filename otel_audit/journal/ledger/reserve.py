"""Room that a directory keeps for the entries that must be written when its disk is full.

A segment may be removed only behind an entry that says so, and to remove one is what makes room on a full disk.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit.journal.files import open_with_mode

__all__ = ["FULL", "Reserve"]

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# Given back in pieces: a writer that waits for room takes a block, and holds lines with it for a while.
_BYTES: Final = 32 << 10
_PIECE_BYTES: Final = 8 << 10


@dataclass(frozen=True, slots=True)
class Reserve:
    """A file that takes up room, for the holder of the ledger's lock."""

    path: Path
    mode: int = 0o600

    def is_whole(self) -> bool:
        """Return True if all of the room is there."""
        try:
            return self.path.stat().st_blocks * 512 >= _BYTES
        except FileNotFoundError:
            return False

    def keep(self) -> bool:
        """Take up the room, unless it is taken already. Return False when the disk is full.

        A file system that compresses may give less: that is as good as it can be kept there.

        Raises:
            OSError: the file cannot be opened or made.
        """
        if self.is_whole():
            return True
        descriptor = open_with_mode(self.path, os.O_RDWR, self.mode)
        try:
            os.posix_fallocate(descriptor, 0, _BYTES)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    def give_back(self) -> bool:
        """Free a piece of the room for whoever takes it. Return False when there is none left."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            left = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, max(0, left - _PIECE_BYTES))
            return left > 0
        finally:
            os.close(descriptor)
