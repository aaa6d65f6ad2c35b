"""The lines of a file with their numbers, from any place on, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

__all__ = ["Mark", "NumberedLine", "first_line", "numbered_lines"]

# The largest request that a collector takes by default is 20 MiB, and JSON makes two to three times as much of it.
_LINE_MAX_BYTES: Final = 64 << 20
_FIRST_LINE_BYTES: Final = 64 << 10


class Mark(NamedTuple):
    """A place between two lines of a file: its offset, and the number of the line before it."""

    offset: int = 0
    line: int = 0


class NumberedLine(NamedTuple):
    """One line without its newline, and the place behind it.

    `content` is None for a line that is too long to be held. `ended`: there is a newline; without one somebody may
    still be writing it.
    """

    content: bytes | None
    end: Mark
    ended: bool


_START: Final = Mark()


def numbered_lines(path: Path, mark: Mark = _START) -> Iterator[NumberedLine]:
    """The lines from the mark to where the file ends now; what is appended meanwhile is left.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset, number = _start(file, mark, size)
        while offset < size:
            content = file.readline(_LINE_MAX_BYTES)
            kept: bytes | None = content
            while len(content) == _LINE_MAX_BYTES and not content.endswith(b"\n"):
                offset, kept = offset + len(content), None
                content = file.readline(_LINE_MAX_BYTES)
            offset, number = offset + len(content), number + 1
            ended = content.endswith(b"\n")
            yield NumberedLine(kept[:-1] if kept and ended else kept, Mark(offset, number), ended)


def first_line(path: Path) -> bytes:
    """The first line without its newline, or the first 64 KiB of it: what tells one log from another.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.readline(_FIRST_LINE_BYTES).rstrip(b"\r\n")


def _start(file: BinaryIO, mark: Mark, size: int) -> Mark:
    if not 0 < mark.offset <= size:  # a shorter file: not the one that the mark was made in
        return Mark()
    file.seek(mark.offset - 1)
    around = file.read(2)
    # The last line had no newline when it was read, and has got one since: that is no line of its own.
    offset = mark.offset + (around[:1] != b"\n" and around[1:] == b"\n")
    file.seek(offset)
    return Mark(offset, mark.line)
