"""The file of one segment, as its writer opens, fills and copies it."""

from __future__ import annotations

import os
from pathlib import Path

from otel_audit.journal.files import open_with_mode

__all__ = ["copy_bytes", "is_at", "open_segment", "sync_directory", "write_whole"]

_BLOCK_BYTES = 1 << 20


def open_segment(path: Path, mode: int) -> int:
    """A descriptor that appends to the file and reads it; made with the mode if it was missing, never a link."""
    return open_with_mode(path, os.O_RDWR | os.O_APPEND, mode)


def is_at(path: Path, descriptor: int) -> bool:
    """True while the open file is the one that others find at the path."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def write_whole(descriptor: int, data: bytes) -> None:
    """All of the data is written.

    Raises:
        OSError: some of it may be.
    """
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:])


def copy_bytes(source: int, target: int, length: int) -> None:
    """The first bytes of one file are appended to another: `length` of them, or as many as there are.

    Raises:
        OSError: some may be.
    """
    done = 0
    while done < length and (block := os.pread(source, min(_BLOCK_BYTES, length - done), done)):
        write_whole(target, block)
        done += len(block)


def sync_directory(directory: Path) -> None:
    """The names in the directory survive a loss of power.

    Raises:
        OSError: they may not.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
