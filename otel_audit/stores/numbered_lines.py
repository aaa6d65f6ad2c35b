"""The lines of a file with their numbers, from any place on, in constant memory; also of one that was compressed.

Offsets and numbers count what a compressed file holds: a mark that was made in a file is good in its compressed form.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple

from otel_audit.stores.compressed import damage_of, opened, size_of

__all__ = ["Mark", "NumberedLine", "beginning", "first_line", "is_marked", "numbered_lines"]

# The largest request that a collector takes by default is 20 MiB, and JSON makes two to three times as much of it.
_LINE_MAX_BYTES: Final = 64 << 20
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


def numbered_lines(path: Path, mark: Mark = _START) -> Iterator[NumberedLine]:
    """The lines from the mark to where the file ends now; what is appended meanwhile is left.

    Raises:
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        size = size_of(file)
        (offset, number, _), before = _start(file, mark, size)
        while offset < size:
            content = file.readline(_LINE_MAX_BYTES)
            kept: bytes | None = content
            while len(content) == _LINE_MAX_BYTES and not content.endswith(b"\n"):
                offset, kept = offset + len(content), None
                before = (before + content[-_BEFORE_BYTES:])[-_BEFORE_BYTES:]
                content = file.readline(_LINE_MAX_BYTES)
            ended, damage = content.endswith(b"\n"), damage_of(file)
            if not kept and kept is not None and not damage:
                return  # the end of a compressed file, whose size nobody knew
            offset, number = offset + len(content), number + 1
            before = (before + content[-_BEFORE_BYTES:])[-_BEFORE_BYTES:]
            mark = Mark(offset, number, _digest(before))
            yield NumberedLine(kept[:-1] if kept and ended else kept, mark, ended, "" if ended else damage)
            if damage and not ended:
                return


def first_line(path: Path) -> bytes:
    """The first line without its newline, or the first 64 KiB of it: what tells one log from another.

    Raises:
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        return file.readline(_FIRST_LINE_BYTES).rstrip(b"\r\n")


def beginning(path: Path, size_bytes: int) -> tuple[bytes, str]:
    """The first bytes that a file holds, and why they are not as many as there should be.

    Raises:
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        return file.read(size_bytes), damage_of(file)


def is_marked(path: Path, mark: Mark) -> bool:
    """Whether the mark was made in this file, and not in another one, which may even begin alike.

    Raises:
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        return _before(file, mark, size_of(file)) is not None


def _start(file: BufferedReader, mark: Mark, size: int) -> tuple[Mark, bytes]:
    """Where to begin, where the file is now, and the bytes in front of it."""
    before = _before(file, mark, size)
    if not before:
        file.seek(0)
        return Mark(), b""
    # The last line had no newline when it was read, and has got one since: that is no line of its own.
    after = file.read(1)
    if not before.endswith(b"\n") and after == b"\n":
        return Mark(mark.offset + 1, mark.line), (before + after)[-_BEFORE_BYTES:]
    file.seek(mark.offset)
    return mark, before


def _before(file: BufferedReader, mark: Mark, size: int) -> bytes | None:
    """The last bytes in front of the mark; None if they are not those that it was made behind."""
    if mark.offset > size:
        return None
    start = max(0, mark.offset - _BEFORE_BYTES)
    file.seek(start)
    before = file.read(mark.offset - start)
    if len(before) < mark.offset - start:
        return None
    return before if not mark.before or mark.before == _digest(before) else None


def _digest(before: bytes) -> str:
    return sha256(before).hexdigest()[:32]
