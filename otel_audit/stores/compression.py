"""Compressed files: by gzip or zstd after they were written, or frame by frame as a collector writes them.

Such a file is recognised by its first bytes, whatever its name. However much a small file unpacks to, memory holds only
its longest line and the window of its compression, 128 MiB at most. A file that was cut off or changed is read up to
the damage. A damaged frame of a collector does not affect other frames: its bytes are returned as they are, as a line
that holds no record.

Source: RFC 1952 for gzip and RFC 8878 for zstd. A file may hold several streams, one after the other. With
`compression: zstd`, the collector's file exporter writes each request as a frame, preceded by its length in four bytes.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from otel_audit.journal.line_file import opened

__all__ = ["Compression", "Unpacked", "can_unpack", "compression_of", "reading"]

_READ_BYTES: Final = 64 << 10


class Compression(StrEnum):
    """The compression of a file."""

    GZIP = "gzip"
    ZSTD = "zstd"
    FRAMED_ZSTD = "zstd, in frames of a collector"
    XZ = "xz"
    BZIP2 = "bzip2"


_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_MAGIC: Final = {
    b"\x1f\x8b": Compression.GZIP,
    _ZSTD_MAGIC: Compression.ZSTD,
    **{bytes((first, 0x2A, 0x4D, 0x18)): Compression.ZSTD for first in range(0x50, 0x60)},  # a frame that is skipped
    b"\xfd7zXZ": Compression.XZ,
    b"BZh": Compression.BZIP2,
}
_LENGTH_BYTES: Final = 4
_HEAD_BYTES: Final = _LENGTH_BYTES + len(_ZSTD_MAGIC)  # of a frame, and no other magic is longer
# By default a collector accepts requests of up to 20 MiB. A frame may be slightly larger than its content.
_FRAME_MAX_BYTES: Final = 64 << 20


def compression_of(path: Path) -> Compression | None:
    """Return the compression of a file, or None if it is not compressed.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_HEAD_BYTES)
    if _frame_bytes(start):
        return Compression.FRAMED_ZSTD
    return next((compression for magic, compression in _MAGIC.items() if start.startswith(magic)), None)


def can_unpack(compression: Compression) -> bool:
    """Return True if this installation can read such files."""
    match compression:
        case Compression.GZIP:
            return True
        case Compression.ZSTD | Compression.FRAMED_ZSTD:
            return _zstd_decoder() is not None
        case _:
            return False


@contextmanager
def reading(path: Path, *, window_bytes: int) -> Iterator[int | Unpacked]:
    """Open a file for the block. Yield its descriptor, or its content if it is compressed and can be unpacked here.

    Raises:
        OSError: the file cannot be read.
    """
    compression = compression_of(path)
    with opened(path) as descriptor:
        if compression is None or not can_unpack(compression):
            yield descriptor
        else:
            yield Unpacked(descriptor, compression, window_bytes)


class Unpacked:
    """The bytes that a compressed file holds, as a `ByteSource` of `line_file`.

    The last `window_bytes` of the content are kept. Going back further unpacks the file from its start again. Once the
    end was reached, `damage` says why content is missing; it is empty if the file is whole.
    """

    def __init__(self, descriptor: int, compression: Compression, window_bytes: int) -> None:
        self._descriptor = descriptor
        self._compression = compression
        self._window_bytes = window_bytes
        self._begin()

    def _begin(self) -> None:
        self._window: deque[bytes] = deque()
        self._offset = self._end = 0  # of the window
        self.damage = ""
        self._chunks = self._frames() if self._compression is Compression.FRAMED_ZSTD else self._streams()

    def read_at(self, size_bytes: int, offset: int) -> bytes:
        """Return `size_bytes` bytes from the offset on, or fewer at the end of the file or before damage.

        Raises:
            OSError: the file cannot be read.
        """
        if offset < self._offset:
            self._begin()
        while self._end < offset + size_bytes and (chunk := next(self._chunks, b"")):
            self._window.append(chunk)
            self._end += len(chunk)
            self.forget(min(offset, self._end - self._window_bytes))
        parts, begin = [], self._offset
        for chunk in self._window:
            if begin + len(chunk) > offset:
                parts.append(chunk[max(0, offset - begin) : max(0, offset + size_bytes - begin)])
            begin += len(chunk)
            if begin >= offset + size_bytes:
                break
        return b"".join(parts)

    def forget(self, offset: int) -> None:
        """Drop the content before the offset, which the caller will not read again."""
        while self._window and self._offset + len(self._window[0]) <= offset:
            self._offset += len(self._window.popleft())

    def _streams(self) -> Iterator[bytes]:
        """Yield the content of the streams in the file, one after the other."""
        place, packed = 0, b""
        try:
            while packed := packed or os.pread(self._descriptor, _READ_BYTES, place):
                decoder = _decoder_of(self._compression)
                while not decoder.eof:
                    if decoder.needs_input:
                        packed = packed or os.pread(self._descriptor, _READ_BYTES, place)
                        if not packed:
                            kind = self._compression
                            self.damage = f"expected a whole {kind} file, got one that is cut off, or not yet whole"
                            return
                        place += len(packed)
                    if content := decoder.decompress(packed, _READ_BYTES):
                        yield content
                    packed = b""
                place -= len(decoder.unused_data)
                # Another stream may follow; zeros between two are padding.
                while (padding := os.pread(self._descriptor, _READ_BYTES, place)) and not padding.lstrip(b"\0"):
                    place += len(padding)
                place += len(padding) - len(padding.lstrip(b"\0"))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # zlib.error and ZstdError have no base in common
            self.damage = f"expected {self._compression}, got what is damaged: {error}"

    def _frames(self) -> Iterator[bytes]:
        """Yield the content of each frame, followed by a newline."""
        place, size = 0, os.fstat(self._descriptor).st_size
        while place < size:
            length = _frame_bytes(os.pread(self._descriptor, _HEAD_BYTES, place))
            content = self._frame(place + _LENGTH_BYTES, length) if length else None
            if content is not None:
                yield content
                yield b"\n"
                place += _LENGTH_BYTES + length
                continue
            following = self._frame_from(place + 1, size)
            while place < following:
                piece = os.pread(self._descriptor, min(_READ_BYTES, following - place), place)
                place += len(piece)
                yield piece
            if following < size:
                yield b"\n"
            else:
                self.damage = "expected a whole frame, got one that is cut off, damaged, or not yet whole"

    def _frame(self, place: int, length: int) -> bytes | None:
        """Return the content of a frame, or None if it is damaged or longer than any line may be."""
        packed = os.pread(self._descriptor, length, place)
        decoder = _decoder_of(Compression.ZSTD)
        try:
            content = decoder.decompress(packed, _FRAME_MAX_BYTES)
        except (OSError, MemoryError):
            raise
        except Exception:  # ZstdError, which comes from one of two packages
            return None
        return content if decoder.eof and not decoder.unused_data else None

    def _frame_from(self, place: int, size: int) -> int:
        """Return the offset at which the next frame begins, or the end of the file."""
        while len(block := os.pread(self._descriptor, _READ_BYTES + _HEAD_BYTES, place)) >= _HEAD_BYTES:
            found = block.find(_ZSTD_MAGIC, _LENGTH_BYTES)
            while found >= 0:
                begin = place + found - _LENGTH_BYTES
                length = _frame_bytes(block[found - _LENGTH_BYTES : found + len(_ZSTD_MAGIC)])
                if length and self._is_followed(begin + _LENGTH_BYTES + length, size):
                    return begin
                found = block.find(_ZSTD_MAGIC, found + 1)
            place += max(1, len(block) - _HEAD_BYTES + 1)
        return size

    def _is_followed(self, place: int, size: int) -> bool:
        """Return True if a frame can end here. The magic bytes of a frame may also occur inside another one."""
        return place >= size or bool(_frame_bytes(os.pread(self._descriptor, _HEAD_BYTES, place)))


def _frame_bytes(head: bytes) -> int:
    """Return the length written before a frame, or 0 if these bytes do not begin a frame."""
    length = int.from_bytes(head[:_LENGTH_BYTES], "big")
    return length if head[_LENGTH_BYTES:] == _ZSTD_MAGIC and length <= _FRAME_MAX_BYTES else 0


class _Decoder(Protocol):
    """A decoder of one compressed stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecoder:
    """A decoder of one member of a gzip file. It verifies the checksum."""

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


def _decoder_of(compression: Compression) -> _Decoder:
    decoder = _GzipDecoder() if compression is Compression.GZIP else _zstd_decoder()
    if decoder is None:
        raise ImportError("zstd")
    return decoder


def _zstd_decoder() -> _Decoder | None:
    """Return a zstd decoder, or None if there is none. Before Python 3.14 it takes a package from the extra `zstd`."""
    try:
        if sys.version_info >= (3, 14):
            from compression.zstd import ZstdDecompressor
        else:
            from backports.zstd import ZstdDecompressor
    except ImportError:
        return None
    decoder: _Decoder = ZstdDecompressor()
    return decoder
