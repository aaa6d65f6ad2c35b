"""The keys of the epochs. Each signs the notes of about an hour, announces the next key, and is erased.

An attacker who takes over the host finds only the key of the current epoch, and cannot sign again what was written in
an earlier one. `KeyFile` holds the private keys, in two slots that are written in place. `EpochKeys` is the archive of
the public keys: for each epoch the entry that announced its key, and the proof that a note of the epoch before covers
that entry. It is never removed, so that a note that is years old leads to today's keys.

The key changes in these steps: the next key is durable in the free slot; the `key` entry is durable under a note; the
archive has it; the slot of the previous key is zeros. The key in force is always the one that was announced last under
a whole note, so the next process after a crash either completes the change or undoes it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import JournalUnreadable, NoteMalformed, ProofInvalid
from otel_audit.journal.files import open_segment, sync_directory, write_whole
from otel_audit.journal.ledger.entries import Entry, Kind, leaf_of, statement
from otel_audit.journal.ledger.files import LedgerFiles, Slots
from otel_audit.journal.line import Line, Tail
from otel_audit.journal.line_file import pieces, pieces_backwards
from otel_audit.signing.keys import SigningKey, VerifierKey
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.signing.tree import check_inclusion

__all__ = ["EpochKey", "EpochKeys", "EpochRecord", "KeyFile", "last_leaf_path", "named_key"]

_MAGIC: Final = b"otaudkey"
_SLOT: Final = struct.Struct("<16sQq32s")  # directory id, number of the epoch, its beginning, seed


@dataclass(frozen=True, slots=True, repr=False)
class EpochKey:
    """The private key of one epoch of one ledger, made at `since_ns`, in nanoseconds since 1970."""

    directory_id: str
    number: int
    since_ns: int
    key: SigningKey

    @classmethod
    def generate(cls, directory_id: str, number: int, now_ns: int) -> EpochKey:
        """Return a new key."""
        return cls(directory_id, number, now_ns, SigningKey.generate())


class KeyFile:
    """The file `ledger.key`, open for the holder of the ledger's lock.

    Raises:
        OSError: it can be neither opened nor created.
    """

    def __init__(self, files: LedgerFiles, mode: int) -> None:
        self._slots = Slots(files.key, _MAGIC, mode)

    def keys(self) -> list[EpochKey]:
        """Return the keys in the file: one, two in the middle of a change, or none if both slots are torn.

        Raises:
            OSError: the file cannot be read.
        """
        return [key for payload in self._slots.read() if payload is not None and (key := _unpacked(payload))]

    def add(self, key: EpochKey, beside: EpochKey | None) -> None:
        """Put a key into the slot that does not hold the other one. It is durable on return.

        Raises:
            OSError: the key may not be stored, and must not be announced.
        """
        self._slots.write(1 - self._slot_of(beside) if beside is not None else 0, _packed(key))
        # When a ledger begins, sync the name too: the process that made the file may have been killed before it did.
        self._slots.sync(name=beside is None)

    def keep_only(self, key: EpochKey) -> None:
        """Overwrite the other slot with zeros, unless it is blank.

        Raises:
            OSError: the other key may still be there.
        """
        other = 1 - self._slot_of(key)
        if not self._slots.is_blank(other):
            self._slots.erase(other)
            self._slots.sync()

    def close(self) -> None:
        """Close the file."""
        self._slots.close()

    def _slot_of(self, key: EpochKey) -> int:
        return 1 if self._slots.read()[1] == _packed(key) else 0


def _packed(key: EpochKey) -> bytes:
    return _SLOT.pack(uuid.UUID(key.directory_id).bytes, key.number, key.since_ns, key.key.seed)


def _unpacked(payload: bytes) -> EpochKey | None:
    if len(payload) != _SLOT.size:
        return None
    directory_id, number, since_ns, seed = _SLOT.unpack(payload)
    return EpochKey(str(uuid.UUID(bytes=directory_id)), number, since_ns, SigningKey(seed))


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch in the archive: its number, its public key, and the entry that announced it, `begin` for the first.

    `path` is the inclusion path from the entry's line to the root in the note. The key of the previous epoch has signed
    the note, or for the first epoch its own key.
    """

    number: int
    vkey: VerifierKey
    announcement: bytes
    path: tuple[bytes, ...]
    note: Note

    @property
    def origin(self) -> str:
        """The name of the ledger."""
        return self.vkey.name

    def announced(self) -> Entry:
        """Return the entry that announced the key, if it names this key and is covered by the note.

        The caller has to check that a trusted key signed the note.

        Raises:
            ProofInvalid: the entry names another key, or the note does not cover it.
            NoteMalformed: the text of the note is not a checkpoint.
        """
        checkpoint = Checkpoint.parse(self.note.text)
        tail = Tail.of(self.announcement)
        entry = statement(Line(self.announcement, tail.seq)) if tail is not None else None
        if not isinstance(entry, Entry) or named_key(entry) != (self.number, str(self.vkey)):
            raise ProofInvalid(
                f"ledger.keys: expected an entry that announces epoch {self.number} with {self.vkey}, got another"
            )
        if checkpoint.origin != self.origin:
            raise ProofInvalid(f"ledger.keys: expected a note of {self.origin}, got one of {checkpoint.origin}")
        check_inclusion(leaf_of(self.announcement), entry.line.seq - 1, checkpoint.size, self.path, checkpoint.root)
        return entry

    def line(self) -> bytes:
        """Return the stored form of the record, with its newline."""
        stored = {
            "epoch": self.number,
            "vkey": str(self.vkey),
            "entry": self.announcement.decode(),
            "path": [base64.b64encode(each).decode() for each in self.path],
            "note": bytes(self.note).decode(),
        }
        return json.dumps(stored, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> EpochRecord:
        """Read a record from its stored form without the newline.

        Raises:
            NoteMalformed: the line is not a record.
        """
        try:
            stored: Any = json.loads(line)
            path = tuple(base64.b64decode(each, validate=True) for each in stored["path"])
            entry, note, number = stored["entry"].encode(), stored["note"].encode(), stored["epoch"]
            return cls(int(number), VerifierKey.parse(stored["vkey"]), entry, path, Note.parse(note))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NoteMalformed(f"ledger.keys: expected a record of an epoch, got {line[:80]!r}: {error}") from None


def named_key(entry: Entry) -> tuple[object, object]:
    """Return the number and the vkey of the epoch that an entry announces."""
    if entry.kind == Kind.KEY:
        return entry.content.get("epoch"), entry.content.get("vkey")
    keys = entry.content.get("keys")
    is_begin = entry.kind == Kind.BEGIN and isinstance(keys, list) and keys
    return (1, keys[0]) if is_begin and isinstance(keys, list) else (None, None)


def last_leaf_path(nodes: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the inclusion path of a leaf in the tree that ends with it. `nodes` are the edge of the tree before it.

    Source: RFC 6962, section 2.1.1: the path of the last leaf consists of the perfect subtrees on its left, smallest
    first.
    """
    return tuple(reversed(nodes))


class EpochKeys:
    """The archive `ledger.keys`. Writing to it needs the ledger's lock, and reading it does not.

    The next record replaces an incomplete one that a crash left at the end.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self._path = path
        self._mode = mode

    @classmethod
    def read(cls, directory: Path) -> Iterator[EpochRecord]:
        """Yield the records of all ledgers of a directory, oldest first.

        Raises:
            OSError: the archive cannot be read.
            JournalUnreadable: a part of it is not a record; the records before it were yielded.
        """
        path = LedgerFiles(directory).keys
        if not path.exists():
            return
        for piece in pieces(path):
            try:
                yield EpochRecord.parse(piece.content or b"")
            except NoteMalformed as error:
                raise JournalUnreadable(f"{path}, byte {piece.offset}: {error}") from None

    def has(self, vkey: VerifierKey) -> bool:
        """Return True if the last record is of this key.

        Raises:
            OSError: the archive cannot be read.
        """
        last = self._last()
        return last is not None and last[0].vkey == vkey

    def add(self, records: Iterable[EpochRecord]) -> None:
        """Append records. They are durable on return.

        Raises:
            OSError: they may not be durable.
        """
        descriptor = open_segment(self._path, self._mode)
        try:
            last = self._last()
            end = last[1] if last is not None else 0
            os.ftruncate(descriptor, end)
            try:
                write_whole(descriptor, b"".join(record.line() for record in records))
            except OSError:
                os.ftruncate(descriptor, end)
                raise
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(self._path.parent)

    def _last(self) -> tuple[EpochRecord, int] | None:
        """Return the last whole record and the offset after it, or None if there is none."""
        with contextlib.suppress(FileNotFoundError):
            for piece in pieces_backwards(self._path):
                with contextlib.suppress(NoteMalformed):
                    return EpochRecord.parse(piece.content or b""), piece.offset + piece.length + 1
        return None
