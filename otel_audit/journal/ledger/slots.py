"""A small file with two slots that is written in place, so that it can be written on a full disk.

Whoever writes one slot leaves the other as it is, so a write that power or a signal tore leaves what was there before.
Nothing is renamed: a private key that a rename replaced would stay on the disk.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Final

from otel_audit.journal.files import is_at, open_with_mode, sync_directory

__all__ = ["SLOT_BYTES", "Slots"]

SLOT_BYTES: Final = 4096  # a page and a block: no write of one slot touches the other
_HEAD: Final = struct.Struct("<8sII")  # magic, length, CRC-32 of the payload


class Slots:
    """The open file, for the holder of the ledger's lock. `magic`: the eight bytes that a slot begins with.

    `create=False`: a missing file is not made. `writes=False`: for an onlooker, who may have no right to write it.

    Raises:
        OSError: the file can be neither opened nor made, or the disk has no room for it.
    """

    def __init__(self, path: Path, magic: bytes, mode: int, *, create: bool = True, writes: bool = True) -> None:
        self._path = path
        self._magic = magic
        if create:
            self._descriptor = open_with_mode(path, os.O_RDWR, mode)
        else:
            access = os.O_RDWR if writes else os.O_RDONLY
            self._descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if create and os.fstat(self._descriptor).st_size < 2 * SLOT_BYTES:
                os.posix_fallocate(self._descriptor, 0, 2 * SLOT_BYTES)
        except BaseException:
            self.close()
            raise

    def read(self) -> tuple[bytes | None, bytes | None]:
        """Return what each slot holds; None for one that is free or torn.

        Raises:
            OSError: they cannot be read.
        """
        return self._payload(0), self._payload(1)

    def is_blank(self, slot: int) -> bool:
        """Return True if nothing was written to the slot, or nothing is left of it.

        Raises:
            OSError: it cannot be read.
        """
        return not os.pread(self._descriptor, SLOT_BYTES, slot * SLOT_BYTES).strip(b"\0")

    def write(self, slot: int, payload: bytes) -> None:
        """Replace what a slot holds. It is durable after `sync`.

        Raises:
            OSError: the slot may be torn.
        """
        head = _HEAD.pack(self._magic, len(payload), zlib.crc32(payload))
        self._put(slot, (head + payload).ljust(SLOT_BYTES, b"\0"))

    def erase(self, slot: int) -> None:
        """Overwrite a slot with zeros. They are durable after `sync`.

        Raises:
            OSError: something of it may be left.
        """
        self._put(slot, bytes(SLOT_BYTES))

    def sync(self, *, name: bool = False) -> None:
        """Make durable what was written; with `name`, the name of the file too.

        Raises:
            OSError: it may not be.
        """
        os.fdatasync(self._descriptor)
        if name:
            sync_directory(self._path.parent)

    def is_in_place(self) -> bool:
        """Return True while this is the file that others find at its path."""
        return is_at(self._path, self._descriptor)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Slots:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _payload(self, slot: int) -> bytes | None:
        content = os.pread(self._descriptor, SLOT_BYTES, slot * SLOT_BYTES)
        if len(content) < _HEAD.size:
            return None
        magic, length, crc = _HEAD.unpack_from(content)
        payload = content[_HEAD.size : _HEAD.size + length]
        is_whole = magic == self._magic and len(payload) == length and zlib.crc32(payload) == crc
        return payload if is_whole else None

    def _put(self, slot: int, data: bytes) -> None:
        written = os.pwrite(self._descriptor, data, slot * SLOT_BYTES)
        if written != len(data):
            raise OSError(f"{self._path}: expected to write {len(data)} bytes, got {written}")
