"""A segment as an onlooker reads it: forwards and backwards, without any lock.

Nothing is opened that a writer or exporter locks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

__all__ = ["Piece", "pieces", "pieces_backwards", "whole_bytes"]

_BLOCK_BYTES: Final = 1 << 20
_LINE_MAX_BYTES: Final = 4 << 20  # far above any line that is written; what is longer is damage


class Piece(NamedTuple):
    """The bytes between two newlines, which may be a line of the chain or damage, and the offset behind them."""

    content: bytes
    end: int


def whole_bytes(path: Path) -> int:
    """How many bytes of a segment are behind a newline: what is after them, its writer may still be at.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as segment:
        end = segment.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            found = _read(segment, start, end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def pieces(path: Path, offset: int = 0) -> Iterator[Piece]:
    """What is between the newlines of a segment, from the offset on. A last piece without a newline is left alone.

    Memory stays flat, also when damage made a piece of any length: that one is passed over.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as segment:
        segment.seek(offset)
        rest, skipping = b"", False
        while block := segment.read(_BLOCK_BYTES):
            *whole, rest = (rest + block).split(b"\n")
            for content in whole:
                offset += len(content) + 1
                if not skipping:
                    yield Piece(content, offset)
                skipping = False
            if len(rest) > _LINE_MAX_BYTES:
                offset += len(rest)
                rest, skipping = b"", True


def pieces_backwards(path: Path, end: int) -> Iterator[bytes]:
    """The contents of the same pieces from the last to the first; `end` is what `whole_bytes` gave.

    Raises:
        OSError: it cannot be read.
    """
    if not end:
        return
    with path.open("rb") as segment:
        rest, skipping, start = b"", False, end - 1
        while start:
            start, stop = max(0, start - _BLOCK_BYTES), start
            rest, *whole = (_read(segment, start, stop - start) + rest).split(b"\n")
            for content in reversed(whole):
                if not skipping:
                    yield content
                skipping = False
            if len(rest) > _LINE_MAX_BYTES:
                rest, skipping = b"", True
        if not skipping:
            yield rest


def _read(segment: BinaryIO, offset: int, length: int) -> bytes:
    segment.seek(offset)
    return segment.read(length)
