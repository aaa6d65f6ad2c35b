"""Numbered lines of a file, compressed or not, from any place on and in constant memory.

`journal.line_file` reads them, as it reads the segments of a journal. Offsets and numbers refer to the unpacked
content, so a mark made in a file is still valid after the file was compressed.
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

# By default a collector accepts requests of up to 20 MiB, and in JSON they take two to three times as much.
_LINE_MAX_BYTES: Final = 64 << 20
LONGER_THAN_HELD: Final = "expected a line of up to 64 MiB, got a longer one"
_FIRST_LINE_BYTES: Final = 64 << 10
_BEFORE_BYTES: Final = 256


class Mark(NamedTuple):
    """A place between two lines of a file: its offset, the number of the line before it, and a digest.

    `before` is the digest of the last bytes before the place, which identifies the file. Empty means unknown.
    """

    offset: int = 0
    line: int = 0
    before: str = ""


class NumberedLine(NamedTuple):
    """One line without its newline, and the place after it.

    `content` is None if the line is too long to hold in memory. `ended` is False if there is no newline, and the line
    may still be being written. `damage` says why nothing after this line, then the last one, can be unpacked.
    """

    content: bytes | None
    end: Mark
    ended: bool
    damage: str = ""


_START: Final = Mark()


def _reading(path: Path) -> AbstractContextManager[int | Unpacked]:
    """Open a file. If it is compressed, keep enough of its content for the longest line and the read beyond it."""
    return reading(path, window_bytes=_LINE_MAX_BYTES + BLOCK_BYTES)


def numbered_lines(path: Path, mark: Mark = _START) -> Iterator[NumberedLine]:
    """Yield the lines from the mark to the current end of the file. Lines appended in the meantime are not read.

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
    """Return the hex SHA-256 of `length` bytes of a file's content, from the offset on.

    Raises:
        OSError: the file cannot be read.
    """
    with _reading(path) as source:
        return hash_between(source, offset, offset + length)[1]


def first_line(path: Path) -> bytes:
    """Return the first line without its newline, at most 64 KiB of it. It identifies a log.

    Raises:
        OSError: the file cannot be read.
    """
    return beginning(path, _FIRST_LINE_BYTES)[0].partition(b"\n")[0].rstrip(b"\r\n")


def beginning(path: Path, size_bytes: int) -> tuple[bytes, str]:
    """Return the first bytes of a file's content, and the reason if there are fewer than expected.

    Raises:
        OSError: the file cannot be read.
    """
    with _reading(path) as source:
        return read_at(source, size_bytes, 0), source.damage if isinstance(source, Unpacked) else ""


def is_marked(path: Path, mark: Mark) -> bool:
    """Return True if the mark was made in this file, and not in another one that may begin alike.

    Raises:
        OSError: the file cannot be read.
    """
    with _reading(path) as source:
        return _before(source, mark, _size_of(source)) is not None


def _size_of(source: int | Unpacked) -> int:
    """Return the current size. For a compressed file it is unknown before the end, and a huge number is returned."""
    return os.fstat(source).st_size if isinstance(source, int) else sys.maxsize


def _end_of(source: int | Unpacked, offset: int, size: int) -> int:
    while offset < size and (data := read_at(source, min(BLOCK_BYTES, size - offset), offset)):
        offset += len(data)
    return offset


def _start(source: int | Unpacked, mark: Mark, size: int) -> tuple[Mark, bytes]:
    """Return the mark at which to begin, and the bytes before it."""
    before = _before(source, mark, size)
    if not before:
        return Mark(), b""
    # The last line got its newline only after it was read. The newline alone is not another line.
    after = read_at(source, 1, mark.offset)
    if not before.endswith(b"\n") and after == b"\n":
        return Mark(mark.offset + 1, mark.line), (before + after)[-_BEFORE_BYTES:]
    return mark, before


def _before(source: int | Unpacked, mark: Mark, size: int) -> bytes | None:
    """Return the last bytes before the mark, or None if they differ from those at the time it was made."""
    if mark.offset > size:
        return None
    start = max(0, mark.offset - _BEFORE_BYTES)
    before = read_at(source, mark.offset - start, start)
    if len(before) < mark.offset - start:
        return None
    return before if not mark.before or mark.before == _digest(before) else None


def _digest(before: bytes) -> str:
    return sha256(before).hexdigest()[:32]
