"""The lines of a file with their numbers, from any place on, in constant memory; also of one that was compressed.

They are read by `journal.line_file`, as the segments of a journal are. Offsets and numbers count what a compressed file
holds: a mark that was made in a file is good in its compressed form.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from otel_audit.journal.line_file import BLOCK_BYTES, blocks, hash_between, pieces_of, read_at
from otel_audit.stores.compression import Unpacked, reading

__all__ = [
    "LONGER_THAN_HELD",
    "Mark",
    "NumberedLine",
    "beginning",
    "first_line",
    "hash_of",
    "is_marked",
    "numbered_lines",
]

# The largest request that a collector takes by default is 20 MiB, and JSON makes two to three times as much of it.
_LINE_MAX_BYTES: Final = 64 << 20
LONGER_THAN_HELD: Final = "expected a line of up to 64 MiB, got a longer one"
_FIRST_LINE_BYTES: Final = 64 << 10
_BEFORE_BYTES: Final = 256


class Mark(NamedTuple):
    """A place between two lines of a file: its offset, the number of the line before it, and what is before it.

    `before` is a digest of the last bytes in front of the place, which tells the file from another one; empty: unknown.
    """

    offset: int = 0
    line: int = 0
    before: str = ""


class NumberedLine(NamedTuple):
    """One line without its newline, and the place behind it.

    `content` is None for a line that is too long to be held. `ended`: there is a newline; without one somebody may
    still be writing it. `damage` says why nothing can be unpacked behind this line, which is then the last one.
    """

    content: bytes | None
    end: Mark
    ended: bool
    damage: str = ""


_START: Final = Mark()


def _reading(path: Path) -> AbstractContextManager[int | Unpacked]:
    """Open a file; of one that is compressed as much is kept as the longest line takes, and what is read beyond it."""
    return reading(path, window_bytes=_LINE_MAX_BYTES + BLOCK_BYTES)


def numbered_lines(path: Path, mark: Mark = _START) -> Iterator[NumberedLine]:
    """Yield the lines from the mark to where the file ends now; what is appended meanwhile is left.

    Raises:
        OSError: the file cannot be read.
    """
    with _reading(path) as source:
        size = _size_of(source)
        (offset, number, _), before = _start(source, mark, size)
        for block in blocks(source, offset, stop=size, line_max_bytes=_LINE_MAX_BYTES - 1):
            if isinstance(source, Unpacked):
                source.forget(block.offset)
            for piece in pieces_of(block):
                offset, number = piece.offset + piece.length + 1, number + 1
                if piece.content is None:
                    before = read_at(source, _BEFORE_BYTES, max(0, offset - _BEFORE_BYTES))
                else:
                    before = (before + piece.content[-_BEFORE_BYTES:] + b"\n")[-_BEFORE_BYTES:]
                yield NumberedLine(piece.content, Mark(offset, number, _digest(before)), True)
        rest = read_at(source, min(_LINE_MAX_BYTES, size - offset), offset)
        damage = source.damage if isinstance(source, Unpacked) else ""
        if rest or damage:
            is_held = len(rest) < _LINE_MAX_BYTES
            end = offset + len(rest) if is_held else _end_of(source, offset + len(rest), size)
            before = (
                (before + rest)[-_BEFORE_BYTES:] if is_held else read_at(source, _BEFORE_BYTES, end - _BEFORE_BYTES)
            )
            damage = source.damage if isinstance(source, Unpacked) else ""
            yield NumberedLine(rest if is_held else None, Mark(end, number + 1, _digest(before)), False, damage)


def hash_of(path: Path, offset: int, length: int) -> str:
    """Return the SHA-256 in hex of so many bytes of what a file holds, from the offset on.

    Raises:
        OSError: the file cannot be read.
    """
    with _reading(path) as source:
        return hash_between(source, offset, offset + length)[1]


def first_line(path: Path) -> bytes:
    """Return the first line without its newline, or the first 64 KiB of it: what tells one log from another.

    Raises:
        OSError: the file cannot be read.
    """
    return beginning(path, _FIRST_LINE_BYTES)[0].partition(b"\n")[0].rstrip(b"\r\n")


def beginning(path: Path, size_bytes: int) -> tuple[bytes, str]:
    """Return the first bytes that a file holds, and why they are not as many as there should be.

    Raises:
        OSError: the file cannot be read.
    """
    with _reading(path) as source:
        return read_at(source, size_bytes, 0), source.damage if isinstance(source, Unpacked) else ""


def is_marked(path: Path, mark: Mark) -> bool:
    """Return True if the mark was made in this file, and not in another one, which may even begin alike.

    Raises:
        OSError: the file cannot be read.
    """
    with _reading(path) as source:
        return _before(source, mark, _size_of(source)) is not None


def _size_of(source: int | Unpacked) -> int:
    """Return the size now. Nobody knows that of a compressed file before its end: it is beyond all others."""
    return os.fstat(source).st_size if isinstance(source, int) else sys.maxsize


def _end_of(source: int | Unpacked, offset: int, size: int) -> int:
    while offset < size and (data := read_at(source, min(BLOCK_BYTES, size - offset), offset)):
        offset += len(data)
    return offset


def _start(source: int | Unpacked, mark: Mark, size: int) -> tuple[Mark, bytes]:
    """Return where to begin, and the bytes in front of it."""
    before = _before(source, mark, size)
    if not before:
        return Mark(), b""
    # The last line had no newline when it was read, and has got one since: that is no line of its own.
    after = read_at(source, 1, mark.offset)
    if not before.endswith(b"\n") and after == b"\n":
        return Mark(mark.offset + 1, mark.line), (before + after)[-_BEFORE_BYTES:]
    return mark, before


def _before(source: int | Unpacked, mark: Mark, size: int) -> bytes | None:
    """Return the last bytes in front of the mark; None if they are not those that it was made behind."""
    if mark.offset > size:
        return None
    start = max(0, mark.offset - _BEFORE_BYTES)
    before = read_at(source, mark.offset - start, start)
    if len(before) < mark.offset - start:
        return None
    return before if not mark.before or mark.before == _digest(before) else None


def _digest(before: bytes) -> str:
    return sha256(before).hexdigest()[:32]
