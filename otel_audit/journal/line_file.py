"""Read a file of lines in bounded memory, from any offset, forwards and backwards.

All readers of journal lines use this module, which reads blocks of whole lines. Anything longer than the longest
possible line is damage. It is never held in memory, and only its length is reported. Damage may be a hole of gigabytes,
left by a crash or by `logrotate` with `copytruncate`. Holes are skipped without reading them.

The first block is small and later ones grow, since many readers want only the first line or the last one. A turn of the
ledger took seven milliseconds, six of them for a block with a thousand lines before its last note.

Lines are split only at the byte of the newline. Bytes after the last newline are left alone, since their writer may not
have finished.

A file is a descriptor here, or a `ByteSource`, so that the content of a compressed file is read by the same code.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Protocol

__all__ = [
    "BLOCK_BYTES",
    "LINE_MAX_BYTES",
    "Block",
    "ByteSource",
    "Piece",
    "blocks",
    "blocks_backwards",
    "find_newline",
    "hash_between",
    "last_newline",
    "opened",
    "pieces",
    "pieces_backwards",
    "pieces_of",
    "read_at",
    "read_block",
    "whole_bytes",
]

BLOCK_BYTES: Final = 1 << 20
LINE_MAX_BYTES: Final = 4 << 20  # far above any line that is written
_FIRST_BLOCK_BYTES: Final = 16 << 10  # some lines
_GROWTH: Final = 8


class Block(NamedTuple):
    """Consecutive whole lines of a file, each with its newline. `end` is the offset after them.

    A piece that is too long to be a line stands alone, and its `data` is empty.
    """

    offset: int
    end: int
    data: bytes


class Piece(NamedTuple):
    """The bytes between two newlines: a line or damage. `content` is None if they are too many to be a line."""

    offset: int
    length: int
    content: bytes | None


class ByteSource(Protocol):
    """Bytes that are read at an offset, as those of a file are. Going back far may take long."""

    def read_at(self, size_bytes: int, offset: int) -> bytes:
        """Return this many bytes from the offset on, or fewer at the end."""


def read_at(source: int | ByteSource, size_bytes: int, offset: int) -> bytes:
    """Return so many bytes from the offset on; fewer where they end.

    Raises:
        OSError: they cannot be read.
    """
    return os.pread(source, size_bytes, offset) if isinstance(source, int) else source.read_at(size_bytes, offset)


class opened:  # in lower case, as it is used like a function; a generator would cost as much as the system call
    """Open a file for reading inside the block, and yield its descriptor.

    Raises:
        OSError: it cannot be opened, or cannot be read inside the block. The error names the file.
    """

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        # Without blocking, since a pipe in the place of a segment would be waited for. Nothing else changes by that.
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        return self._descriptor

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(self._path)  # the system names no file if it was given a descriptor


def read_block(
    source: int | ByteSource,
    offset: int,
    max_bytes: int,
    *,
    stop: int | None = None,
    searched: int = 0,
    line_max_bytes: int | None = None,
) -> Block:
    """Return the lines from the offset to the last newline within `max_bytes`, or the first line if it is longer.

    Return nothing if there is no newline. Nothing is read from the offset `stop` on. Up to the offset `searched` there
    is known to be no newline. A line of more than `line_max_bytes`, by default `LINE_MAX_BYTES`, is not held in memory.

    Raises:
        OSError: the file cannot be read.
    """
    data = read_at(source, max_bytes if stop is None else max(0, min(max_bytes, stop - offset)), offset)
    end = data.rfind(b"\n") + 1
    if end or len(data) < max_bytes:
        return Block(offset, offset + end, data[:end])
    newline = find_newline(source, max(offset + len(data), searched))
    if newline < 0 or (stop is not None and newline >= stop):
        return Block(offset, offset, b"")
    return _single(source, offset, newline, LINE_MAX_BYTES if line_max_bytes is None else line_max_bytes)


def blocks(
    source: int | ByteSource, offset: int = 0, *, stop: int | None = None, line_max_bytes: int | None = None
) -> Iterator[Block]:
    """Yield every line from the offset on, up to the offset `stop` if it is given. For the limit see `read_block`.

    Raises:
        OSError: the file cannot be read.
    """
    most = BLOCK_BYTES if line_max_bytes is None else min(BLOCK_BYTES, line_max_bytes)
    size = min(_FIRST_BLOCK_BYTES, most)
    while (block := read_block(source, offset, size, stop=stop, line_max_bytes=line_max_bytes)).end > offset:
        yield block
        offset, size = block.end, min(size * _GROWTH, most)


def blocks_backwards(descriptor: int, end: int) -> Iterator[Block]:
    """Yield every line before `end`, which is just after a newline. The last block comes first.

    Raises:
        OSError: the file cannot be read.
    """
    size = min(_FIRST_BLOCK_BYTES, BLOCK_BYTES)
    while end:
        start = max(0, end - size)
        data = os.pread(descriptor, end - start, start)
        begin = data.find(b"\n") + 1 if start else 0  # the first piece may have begun before
        if start and begin == end - start:
            block = _single(descriptor, last_newline(descriptor, end - 1) + 1, end - 1, LINE_MAX_BYTES)
        else:
            block = Block(start + begin, end, data[begin:])
        yield block
        end, size = block.offset, min(size * _GROWTH, BLOCK_BYTES)


def _single(source: int | ByteSource, offset: int, newline: int, line_max_bytes: int) -> Block:
    """Return the one piece that ends with this newline."""
    is_held = newline - offset <= line_max_bytes
    return Block(offset, newline + 1, read_at(source, newline + 1 - offset, offset) if is_held else b"")


def pieces(path: Path) -> Iterator[Piece]:
    """Yield the pieces between the newlines of a file.

    Raises:
        OSError: it cannot be read.
    """
    with opened(path) as descriptor:
        for block in blocks(descriptor):
            yield from pieces_of(block)


def pieces_backwards(path: Path) -> Iterator[Piece]:
    """Yield the same pieces from the last to the first.

    Raises:
        OSError: it cannot be read.
    """
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        for block in blocks_backwards(descriptor, last_newline(descriptor, size) + 1):
            yield from reversed(pieces_of(block))


def pieces_of(block: Block) -> list[Piece]:
    """Return the pieces between the newlines of a block."""
    if not block.data:
        return [Piece(block.offset, block.end - 1 - block.offset, None)]
    found, offset = [], block.offset
    for content in block.data[:-1].split(b"\n"):
        found.append(Piece(offset, len(content), content))
        offset += len(content) + 1
    return found


def whole_bytes(path: Path) -> int:
    """Return the number of bytes of a file up to its last newline.

    Raises:
        OSError: it cannot be read.
    """
    with opened(path) as descriptor:
        return last_newline(descriptor, os.fstat(descriptor).st_size) + 1


def find_newline(source: int | ByteSource, offset: int) -> int:
    """Return the offset of the first newline from this offset on, or -1 if there is none.

    Raises:
        OSError: the file cannot be read.
    """
    while offset >= 0:
        block = read_at(source, BLOCK_BYTES, offset)
        found = block.find(b"\n")
        if found >= 0:
            return offset + found
        if len(block) < BLOCK_BYTES:
            break
        offset += len(block)
        if isinstance(source, int):
            offset = _next_data(source, offset)
    return -1


def last_newline(descriptor: int, end: int) -> int:
    """Return the offset of the last newline before `end`, or -1 if there is none.

    Raises:
        OSError: the file cannot be read.
    """
    size = min(_FIRST_BLOCK_BYTES, BLOCK_BYTES)
    while end:
        start = max(0, end - size)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found
        end, size = _hole_before(descriptor, start), min(size * _GROWTH, BLOCK_BYTES)
    return -1


def _next_data(descriptor: int, offset: int) -> int:
    """Return the offset of the first byte from this offset on that is not in a hole, or -1 if there is none.

    Source: lseek(2), SEEK_DATA. A file system without support for holes reports that all is data.
    """
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        return -1 if error.errno == errno.ENXIO else offset


def _hole_before(descriptor: int, end: int) -> int:
    """Return the beginning of the hole that ends at this offset, or the offset itself if there is none."""
    low, high = -1, end  # between them is the border: data up to `low`, and none from `high` on
    if not end or 0 <= _next_data(descriptor, end - 1) < end:
        return end
    while high - low > 1:
        middle = (low + high) // 2
        if 0 <= _next_data(descriptor, middle) < end:
            low = middle
        else:
            high = middle
    return high


def hash_between(source: int | ByteSource, offset: int, end: int) -> tuple[int, str]:
    """Return the number of bytes between two offsets of a file, and their SHA-256 in hex. They are read in blocks.

    Raises:
        OSError: they cannot be read.
    """
    found, begin = sha256(), offset
    while offset < end and (data := read_at(source, min(BLOCK_BYTES, end - offset), offset)):
        found.update(data)
        offset += len(data)
    return offset - begin, found.hexdigest()
