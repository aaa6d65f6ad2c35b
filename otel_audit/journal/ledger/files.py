"""The names of the files of a directory's ledger, and which ledgers are there.

ledger.<8 digits>.jsonl    lines, append only; each begins with a header that names the directory id
ledger.lock                held by the process whose turn it is; never removed
ledger.ship.lock           held by the one process that exports the ledger
ledger.<id>.cursor         how far each exporter has come in one of the ledgers
ledger.key                 the private key of the epoch; it must never be in a backup
ledger.keys                the public keys of all epochs; never removed
ledger.edge                the edge of the tree at the last note, so that a new process need not hash old lines
ledger.reserve             space for the entries that must be written on a full disk

If a ledger cannot be continued, another one with its own id follows. The numbers of the segments run through both, so
that no segment is ever written twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from otel_audit.journal.files import StreamFiles, open_with_mode, sync_directory
from otel_audit.journal.line import TAIL_BYTES, Tail
from otel_audit.journal.line_file import LINE_MAX_BYTES, find_newline, opened

__all__ = ["FULL", "SLOT_BYTES", "LedgerFiles", "LedgerLog", "Reserve", "Slots", "id_of"]

_HEADER_BYTES: Final = 4096  # most headers
_SEGMENT: Final = re.compile(r"ledger\.(\d{8})\.jsonl\Z")


@dataclass(frozen=True, slots=True)
class LedgerFiles:
    """Where the files of a directory's ledger are."""

    directory: Path

    def segment(self, number: int) -> Path:
        """Return the path of one segment, numbered from 1."""
        return self.directory / f"ledger.{number:08d}.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process whose turn it is."""
        return self.directory / "ledger.lock"

    @property
    def ship_lock(self) -> Path:
        """Held by the one process that exports the ledger."""
        return self.directory / "ledger.ship.lock"

    @property
    def key(self) -> Path:
        """The private key of the epoch."""
        return self.directory / "ledger.key"

    @property
    def keys(self) -> Path:
        """The public keys of all epochs, and what shows that each was announced under the one before."""
        return self.directory / "ledger.keys"

    @property
    def edge(self) -> Path:
        """The edge of the tree at the last note."""
        return self.directory / "ledger.edge"

    @property
    def reserve(self) -> Path:
        """Room for the entries that must be written on a full disk."""
        return self.directory / "ledger.reserve"

    @property
    def former(self) -> Path:
        """The unsigned ledger of earlier versions."""
        return self.directory / "ledger.jsonl"

    def segments(self) -> list[int]:
        """Return the numbers of the segments that exist, of all ledgers, ascending.

        Raises:
            OSError: the directory cannot be listed.
        """
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for match in map(_SEGMENT.match, names) if match is not None)

    def logs(self) -> list[LedgerLog]:
        """Return the ledgers of the directory, oldest first. The last one is in force.

        A segment without a readable line belongs to the ledger of the segment before it.

        Raises:
            OSError: a segment cannot be read.
        """
        found: dict[str, list[int]] = {}
        directory_id = ""
        for number in self.segments():
            directory_id = id_of(self.segment(number)) or directory_id
            if directory_id:
                found.setdefault(directory_id, []).append(number)
        return [LedgerLog(self.directory, each, tuple(numbers)) for each, numbers in found.items()]

    def latest(self) -> LedgerLog | None:
        """Return the ledger in force, or None if there is none.

        Raises:
            OSError: a segment cannot be read.
        """
        for number in reversed(self.segments()):  # reads only its own segments and the one before them
            if directory_id := id_of(self.segment(number)):
                return LedgerLog(self.directory, directory_id, self._of(directory_id, number))
        return None

    def directory_id(self) -> str:
        """Return the id of the ledger in force, or an empty text if there is none.

        Raises:
            OSError: a segment cannot be read.
        """
        log = self.latest()
        return log.directory_id if log is not None else ""

    def _of(self, directory_id: str, last: int) -> tuple[int, ...]:
        numbers = []
        for number in reversed([each for each in self.segments() if each <= last]):
            if id_of(self.segment(number)) not in (directory_id, ""):
                break
            numbers.append(number)
        return tuple(reversed(numbers))


@dataclass(frozen=True, slots=True)
class LedgerLog(StreamFiles):
    """One ledger, seen as a stream whose id is the directory id, for readers, cursors and shipments.

    `numbers` are the numbers of its segments at the time of the lookup.
    """

    numbers: tuple[int, ...] = ()

    @property
    def directory_id(self) -> str:
        """The id that names the directory for as long as this ledger is continued."""
        return self.stream_id

    def segment(self, number: int) -> Path:
        """See `StreamFiles`."""
        return LedgerFiles(self.directory).segment(number)

    @property
    def writer_lock(self) -> Path:
        """Held by the process whose turn it is."""
        return LedgerFiles(self.directory).lock

    @property
    def ship_lock(self) -> Path:
        """Held by the one process that exports the ledger."""
        return LedgerFiles(self.directory).ship_lock

    @property
    def cursor(self) -> Path:
        """How far each exporter has come. Each ledger of a directory has its own, since line numbers start again."""
        return self.directory / f"ledger.{self.stream_id}.cursor"

    def segments(self) -> list[int]:
        """Return the numbers of its existing segments, ascending."""
        files = LedgerFiles(self.directory)
        first = self.numbers[0] if self.numbers else 1
        found = []
        for number in files.segments():
            if number < first:
                continue
            if number not in self.numbers and id_of(files.segment(number)) not in (self.stream_id, ""):
                break  # another ledger begins
            found.append(number)
        return found

    def segment_from(self, number: int) -> int | None:
        """See `StreamFiles`. Never a segment of another ledger."""
        if number in self.numbers and self.segment(number).exists():
            return number
        # The numbers have no gaps, so a reader that waits at the end need not list the directory.
        if self.numbers and number > self.numbers[-1] and not self.segment(self.numbers[-1] + 1).exists():
            return None
        return next((found for found in self.segments() if found >= number), None)


def id_of(path: Path) -> str:
    """Return the directory id from the first valid line of a segment, or an empty text if it has none.

    Raises:
        OSError: the segment cannot be read.
    """
    with contextlib.suppress(FileNotFoundError), opened(path) as descriptor:
        first, ended, _ = os.pread(descriptor, _HEADER_BYTES, 0).partition(b"\n")
        if ended and (tail := Tail.of(first)) is not None:
            return tail.stream_id
        offset = 0
        while (newline := find_newline(descriptor, offset)) >= 0:
            length = newline - offset
            if length <= LINE_MAX_BYTES:
                begin = max(offset, newline - TAIL_BYTES)
                tail = Tail.of(b"{" + os.pread(descriptor, newline - begin, begin))
                if tail is not None and os.pread(descriptor, 1, offset) == b"{":
                    return tail.stream_id
            offset = newline + 1
    return ""


SLOT_BYTES: Final = 4096  # a page and a block: no write of one slot touches the other
_SLOT_HEAD: Final = struct.Struct("<8sII")  # magic, length, CRC-32 of the payload


class Slots:
    """A small file with two slots, written in place, so that it can be written on a full disk. For the lock's holder.

    A write to one slot leaves the other alone, so after a torn write the previous content is still there. The file is
    never renamed, since a private key that a rename replaced would stay on the disk.

    `magic` is the eight bytes with which a slot begins. With `create=False` a missing file is not made. An onlooker,
    who may not have the right to write the file, passes `writes=False`.

    Raises:
        OSError: the file can be neither opened nor created, or the disk has no room for it.
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
        """Return the content of both slots. It is None for a slot that is free or torn.

        Raises:
            OSError: the slots cannot be read.
        """
        return self._payload(0), self._payload(1)

    def is_blank(self, slot: int) -> bool:
        """Return True if nothing is in the slot, not even the remains of earlier content.

        Raises:
            OSError: the slot cannot be read.
        """
        return not os.pread(self._descriptor, SLOT_BYTES, slot * SLOT_BYTES).strip(b"\0")

    def write(self, slot: int, payload: bytes) -> None:
        """Replace the content of a slot. It is durable after `sync`.

        Raises:
            OSError: the slot may be torn.
        """
        head = _SLOT_HEAD.pack(self._magic, len(payload), zlib.crc32(payload))
        self._put(slot, (head + payload).ljust(SLOT_BYTES, b"\0"))

    def erase(self, slot: int) -> None:
        """Overwrite a slot with zeros. They are durable after `sync`.

        Raises:
            OSError: some of the content may be left.
        """
        self._put(slot, bytes(SLOT_BYTES))

    def sync(self, *, name: bool = False) -> None:
        """Make everything written durable, with `name` also the name of the file.

        Raises:
            OSError: it may not be durable.
        """
        os.fdatasync(self._descriptor)
        if name:
            sync_directory(self._path.parent)

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
        if len(content) < _SLOT_HEAD.size:
            return None
        magic, length, crc = _SLOT_HEAD.unpack_from(content)
        payload = content[_SLOT_HEAD.size : _SLOT_HEAD.size + length]
        is_whole = magic == self._magic and len(payload) == length and zlib.crc32(payload) == crc
        return payload if is_whole else None

    def _put(self, slot: int, data: bytes) -> None:
        written = os.pwrite(self._descriptor, data, slot * SLOT_BYTES)
        if written != len(data):
            raise OSError(f"{self._path}: expected to write {len(data)} bytes, got {written}")


FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# Given back in pieces, since a writer that waits for room takes a block and holds on to it for a while.
_RESERVE_BYTES: Final = 32 << 10
_RESERVE_PIECE_BYTES: Final = 8 << 10


@dataclass(frozen=True, slots=True)
class Reserve:
    """Space that a directory keeps for the entries that must be written when its disk is full.

    A segment may be removed only after an entry that says so, and on a full disk removing one is what makes room. For
    the holder of the ledger's lock.
    """

    path: Path
    mode: int = 0o600

    def is_whole(self) -> bool:
        """Return True if none of the space has been given back."""
        try:
            return self.path.stat().st_blocks * 512 >= _RESERVE_BYTES
        except FileNotFoundError:
            return False

    def keep(self) -> bool:
        """Take up the space, unless it is taken already. Return False if the disk is full.

        A file system that compresses may give less, and nothing better can be done there.

        Raises:
            OSError: the file cannot be opened or created.
        """
        if self.is_whole():
            return True
        descriptor = open_with_mode(self.path, os.O_RDWR, self.mode)
        try:
            os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    def give_back(self) -> bool:
        """Free a piece of the space. Return False if none is left."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            left = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, max(0, left - _RESERVE_PIECE_BYTES))
            return left > 0
        finally:
            os.close(descriptor)
