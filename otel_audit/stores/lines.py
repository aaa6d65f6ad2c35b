"""Files that were compressed after they were written: by gzip, or by zstd.

The first bytes tell them, whatever their name is. However much a small file unpacks to, no more of it is in memory than
was asked for, besides the window of its compression: 128 MiB at most. A file that is cut off, or changed in the middle,
is read up to there.

Source: RFC 1952 for gzip, RFC 8878 for zstd. A file may hold several streams, one behind the other.

The lines of a file with their numbers, from any place on, in constant memory; also of one that was compressed.

Offsets and numbers count what a compressed file holds: a mark that was made in a file is good in its compressed form.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from enum import StrEnum
from hashlib import sha256
from io import BufferedReader, RawIOBase, UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "Compression",
    "Mark",
    "NumberedLine",
    "beginning",
    "can_unpack",
    "compression_of",
    "damage_of",
    "first_line",
    "is_marked",
    "numbered_lines",
    "opened",
    "size_of",
]


_READ_BYTES: Final = 64 << 10


class Compression(StrEnum):
    """How a file is compressed."""

    GZIP = "gzip"
    ZSTD = "zstd"
    XZ = "xz"
    BZIP2 = "bzip2"


_MAGIC: Final = {
    b"\x1f\x8b": Compression.GZIP,
    b"\x28\xb5\x2f\xfd": Compression.ZSTD,
    **{bytes((first, 0x2A, 0x4D, 0x18)): Compression.ZSTD for first in range(0x50, 0x60)},  # a frame that is skipped
    b"\xfd7zXZ": Compression.XZ,
    b"BZh": Compression.BZIP2,
}
_MAGIC_BYTES: Final = max(map(len, _MAGIC))


def compression_of(path: Path) -> Compression | None:
    """How a file is compressed; None if it is not.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_MAGIC_BYTES)
    return next((compression for magic, compression in _MAGIC.items() if start.startswith(magic)), None)


def can_unpack(compression: Compression) -> bool:
    """Whether such files are read here."""
    return compression is Compression.GZIP or (compression is Compression.ZSTD and _zstd_decoder() is not None)


def opened(path: Path) -> BufferedReader:
    """A file that is read as what it holds. One that cannot be unpacked here is read as it is.

    Raises:
        OSError: the file cannot be read.
    """
    compression = compression_of(path)
    if compression is None or not can_unpack(compression):
        return path.open("rb")
    return BufferedReader(_Unpacked(path, compression), _READ_BYTES)


def size_of(file: BufferedReader) -> int:
    """The size of an opened file now. Nobody knows that of a compressed one before its end: it is beyond all others."""
    return sys.maxsize if isinstance(file.raw, _Unpacked) else os.fstat(file.fileno()).st_size


def damage_of(file: BufferedReader) -> str:
    """Why an opened file, read to its end, does not hold all that it should; empty if nothing is missing."""
    return file.raw.damage if isinstance(file.raw, _Unpacked) else ""


class _Decoder(Protocol):
    """Unpacks one stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecoder:
    """Unpacks one member of a gzip file and verifies its checksum."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _zstd_decoder() -> _Decoder | None:
    """Return None where it is missing: before Python 3.14 it is a package, which the extra `zstd` brings."""
    try:
        if sys.version_info >= (3, 14):
            from compression.zstd import ZstdDecompressor
        else:
            from backports.zstd import ZstdDecompressor
    except ImportError:
        return None
    decoder: _Decoder = ZstdDecompressor()
    return decoder


class _Unpacked(RawIOBase):
    """The bytes that a compressed file holds."""

    def __init__(self, path: Path, compression: Compression) -> None:
        self._compression = compression
        self._file = path.open("rb", buffering=0)
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._decoder = self._new_decoder()
        self._offset = 0
        self.damage = ""

    def _new_decoder(self) -> _Decoder:
        decoder = _GzipDecoder() if self._compression is Compression.GZIP else _zstd_decoder()
        if decoder is None:
            raise ImportError("zstd")
        return decoder

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset, or to the end if that is nearer. The way back leads over the start."""
        if whence != os.SEEK_SET:
            raise UnsupportedOperation("expected an offset from the start")
        if offset < self._offset:
            self._begin()
        while self._offset < offset and self.read(min(offset - self._offset, _READ_BYTES)):
            pass
        return self._offset

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Return 0 at the end, and from where the file is damaged on."""
        view = memoryview(buffer).cast("B")
        content = b"" if self.damage else self._unpack(len(view))
        view[: len(content)] = content
        self._offset += len(content)
        return len(content)

    def _unpack(self, size_bytes: int) -> bytes:
        try:
            while (packed := self._packed()) is not None:
                if content := self._decoder.decompress(packed, size_bytes):
                    return content
        except (OSError, MemoryError):
            raise
        except Exception as error:  # zlib.error and ZstdError have no base in common
            self.damage = f"expected {self._compression}, got what is damaged: {error}"
        return b""

    def _packed(self) -> bytes | None:
        """The bytes that the decoder is to be given next; None at the end of the file."""
        if not self._decoder.eof:
            if not self._decoder.needs_input:
                return b""
            packed = self._file.read(_READ_BYTES)
            if not packed:
                self.damage = f"expected a whole {self._compression} file, got one that is cut off, or not yet whole"
            return packed or None
        # Another stream may follow; zeros between two are padding.
        packed = self._decoder.unused_data.lstrip(b"\0")
        while not packed:
            more = self._file.read(_READ_BYTES)
            if not more:
                return None
            packed = more.lstrip(b"\0")
        self._decoder = self._new_decoder()
        return packed

    def close(self) -> None:
        self._file.close()
        super().close()


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
