"""A turn of a process to write the ledger: some entries, and one signed note over everything.

A turn cuts off whatever follows the last whole note, and then needs one `write` and one `fdatasync`. If a note is
whole, so is its turn. Each size is signed only once: a turn that is cut off never had a whole note, and a ledger whose
signed end is missing is not continued.

No event waits for a turn, which takes some milliseconds, or as long as the disk needs.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from otel_audit import ids
from otel_audit.errors import LedgerBusy, described, remedy_of
from otel_audit.journal.files import open_segment, sync_directory, write_whole
from otel_audit.journal.ledger.draft import Author, Draft, Telling
from otel_audit.journal.ledger.entries import Kind, SignedNote, origin_of
from otel_audit.journal.ledger.epochs import EpochKey, EpochKeys, KeyFile
from otel_audit.journal.ledger.files import FULL, LedgerLog, Reserve
from otel_audit.journal.ledger.standing import (
    EdgeFile,
    Reason,
    Standing,
    announcement_of,
    is_torn_beginning,
    log_at_end,
    standing_of,
)
from otel_audit.journal.locks import FileLock, host_id
from otel_audit.signing.note import Checkpoint
from otel_audit.threads import process

__all__ = ["VITAL", "Turn", "Written"]

# These may use the reserve on a full disk: removals make room, and the end of a stream is recorded only once.
VITAL: Final = frozenset({Kind.BEGIN, Kind.END, Kind.ADOPT, Kind.RETAIN})

_TORN_BYTES: Final = 64 * 1024  # more than a first turn
_EPOCH_NS: Final = 3600 * 10**9
_EPOCH_MIN_NS: Final = 60 * 10**9


@dataclass(frozen=True, slots=True)
class Written:
    """What a turn has written. `left_out` are the entries for which a full disk had no room."""

    checkpoint: Checkpoint
    left_out: tuple[Telling, ...] = ()


class Turn:
    """The right to write the ledger, until the end of `Ledger.turn`. For one thread.

    It forgets the private key at its end, because another process may change the key before the next turn.
    """

    def __init__(self, author: Author, lock: FileLock) -> None:
        self._author = author
        self._lock = lock
        self._process = process()
        self._standing: Standing | None = None
        self._key: EpochKey | None = None
        self._keys: KeyFile | None = None
        self._edges: EdgeFile | None = None
        self._reserve = Reserve(author.files.reserve, author.file_mode)

    @property
    def note(self) -> SignedNote | None:
        """The last note that this turn has read or written, if any."""
        return self._standing.note if self._standing is not None else None

    @property
    def log(self) -> LedgerLog:
        """The ledger to which entries are written, with its last segments. If there is none, a new one begins.

        Raises:
            LedgerBusy: the lock file was removed.
            OSError: a ledger can be neither read nor begun.
        """
        return self._ready()[0].log

    @property
    def directory_id(self) -> str:
        """The id of that ledger, which is a new one if the former ledger could not be continued. Raises as `log`."""
        return self.log.directory_id

    def durable_note(self) -> SignedNote | None:
        """Return the last note if it is known to be durable, since no other may be published. Raises as `log`."""
        standing, _ = self._ready()
        return standing.note if standing.is_known else None

    def write(self, entries: Sequence[Telling]) -> Written:
        """Write entries and a note over them. They are signed and durable on return. Without entries, write nothing.

        On a full disk vital entries use the space of the reserve, and the others are left out.

        Raises:
            LedgerBusy: nothing was written, because the lock file was removed or this is a forked child.
            OSError: the entries may not be durable. If the disk is full, none of them is in the ledger.
        """
        standing, key = self._ready()
        if not entries:
            return Written(standing.note.checkpoint)
        left_out: tuple[Telling, ...] = ()
        try:
            if not self._has_reserve():  # the space that is left is only for vital entries
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._author.files.directory))
            self._write(standing, key, entries)
        except OSError as error:
            vital = [each for each in entries if each[0] in VITAL]
            if error.errno not in FULL or not vital or self._standing is None:
                raise
            left_out = tuple(each for each in entries if each[0] not in VITAL)
            self._with_room(lambda: self._write(standing, key, vital, may_change_key=False))
        self._has_reserve()
        return Written(self._ready()[0].note.checkpoint, left_out)

    def _has_reserve(self) -> bool:
        try:
            return self._reserve.keep()
        except OSError:  # a process that may not write the file cannot use it either
            return True

    def close(self) -> None:
        """End the turn. The lock file stays."""
        if self._process != process():  # a fork that Python did not notice
            self.abandon()
            return
        self._forget()
        self._lock.release()

    def abandon(self) -> None:
        """Close the inherited descriptors in a forked child, and change nothing for the parent."""
        self._forget()
        self._lock.abandon()

    def _forget(self) -> None:
        self._key = None
        for file in (self._keys, self._edges):
            if file is not None:
                file.close()
        self._keys = self._edges = None

    def _ready(self) -> tuple[Standing, EpochKey]:
        """Return the standing of the ledger and the key that signs next. Begin a ledger if none can be continued."""
        if self._process != process():
            raise LedgerBusy("the ledger: expected the process that took the turn, got a child of it")
        if self._standing is not None and self._key is not None:
            return self._standing, self._key
        former, reason = self._look()
        if self._standing is None or self._key is None:
            self._with_room(lambda: self._begin(former, reason))
        if self._standing is None or self._key is None:
            raise OSError(f"{self._author.files.directory}: expected a ledger, got none")
        return self._standing, self._key

    def _look(self) -> tuple[Standing | LedgerLog | None, Reason | None]:
        """Find the ledger in force and its key. If it must not be continued, return it and the reason."""
        files = self._author.files
        if self._edges is None:
            with contextlib.suppress(OSError):  # a cache
                self._edges = EdgeFile(files, self._author.file_mode)
        hint = self._edges.hint() if self._edges is not None else 1
        while (log := log_at_end(files, hint)) is not None:
            cached = self._edges.largest(log.directory_id) if self._edges is not None else None
            standing = standing_of(log, cached)
            if (standing is None or standing.edge is None) and cached is None and is_torn_beginning(log):
                self._check_lock()
                files.segment(log.numbers[-1]).unlink()  # nobody can have seen it
                continue
            if standing is None:
                return log, Reason.NO_NOTE
            if cached is not None and int(cached["size"]) > standing.note.checkpoint.size:
                return standing, Reason.CUT
            if not standing.is_here:
                return standing, Reason.OTHER_HOST
            if standing.edge is None:
                return standing, Reason.ROOT
            key, reason = self._key_of(standing)
            if key is None:
                return standing, reason
            self._standing, self._key = standing, key
            return standing, None
        return None, None

    def _key_of(self, standing: Standing) -> tuple[EpochKey | None, Reason | None]:
        if not self._author.files.key.exists():
            return None, Reason.KEY_MISSING
        found = self._key_file().keys()
        key = standing.key_in_force(found)
        return key, None if key is not None else Reason.KEY_UNKNOWN if found else Reason.KEY_TORN

    def _key_file(self) -> KeyFile:
        if self._keys is None:
            self._keys = KeyFile(self._author.files, self._author.file_mode)
        return self._keys

    def _begin(self, former: Standing | LedgerLog | None, reason: Reason | None) -> None:
        """Begin a ledger with an id of its own. Erase the key of the former one, which nobody will continue."""
        author = self._author
        directory_id = str(ids.new_id())
        origin = origin_of(author.log_name, directory_id)
        key = EpochKey.generate(directory_id, 1, author.clock())
        self._key_file().add(key, None)
        identity = author.identity.verifier(origin)
        draft = Draft(author, directory_id, origin, number=self._next_number(former))
        content = {
            "log_name": author.log_name,
            "keys": [str(key.key.verifier(origin)), *([str(identity)] if identity is not None else [])],
            "host_id": host_id(),
            "former": None if former is None else _named(former, str(reason)),
        }
        draft.tell((Kind.BEGIN, content))
        self._append(draft, key)
        self._finish(key)
        if former is not None:
            author.say(
                "ledger",
                f"{author.files.directory}: a new ledger begins ({directory_id}), since the former one cannot be "
                f"continued: {reason}; `otel-audit verify` checks both",
            )

    def _next_number(self, former: Standing | LedgerLog | None) -> int:
        """Return the number of the first segment of a new ledger. The number of a torn one is used again."""
        if former is not None:
            return (former.log if isinstance(former, Standing) else former).numbers[-1] + 1
        files = self._author.files
        numbers = files.segments()
        is_torn = len(numbers) == 1 and files.segment(numbers[0]).stat().st_size <= _TORN_BYTES
        return numbers[0] if is_torn else max(numbers, default=0) + 1

    def _write(
        self, standing: Standing, key: EpochKey, entries: Sequence[Telling], *, may_change_key: bool = True
    ) -> None:
        draft = Draft(self._author, standing.log.directory_id, standing.origin, standing)
        for each in entries:
            draft.tell(each)
        has_end = any(kind == Kind.END for kind, _ in entries)
        following = self._next_key(standing, key, has_end=has_end) if may_change_key else None
        if following is not None:
            vkey = str(following.key.verifier(standing.origin))
            draft.tell((Kind.KEY, {"epoch": following.number, "vkey": vkey}))
        self._append(draft, key, standing)
        self._finish(following or key)

    def _next_key(self, standing: Standing, key: EpochKey, *, has_end: bool) -> EpochKey | None:
        """Return the key of the next epoch, already durable in its file, or None if it is not due yet."""
        now_ns = self._author.clock()
        age_ns = abs(now_ns - key.since_ns)  # `abs`: after a clock was set back, an epoch could last for years
        if age_ns < (_EPOCH_MIN_NS if has_end else _EPOCH_NS):
            return None
        following = EpochKey.generate(key.directory_id, key.number + 1, now_ns)
        try:
            self._archive(standing, key)  # a crash after the announcement of this key may have prevented it
            self._key_file().add(following, key)
        except OSError as error:
            said = f"{self._author.files.key}: expected to keep the next key, got {error.strerror or error}"
            self._author.say("ledger key", f"{said}; {remedy_of(error, 'let the user of the service write it')}")
            return None
        return following

    def _append(self, draft: Draft, key: EpochKey, standing: Standing | None = None) -> None:
        """Sign and write the draft. It is durable on return."""
        author = self._author
        after = draft.sign(key)
        self._check_lock()
        if draft.is_new and standing is not None and not standing.sealed:
            self._leave(standing)
        self._cut_later(draft.number)
        descriptor = open_segment(author.files.segment(draft.number), author.file_mode)
        try:
            if os.fstat(descriptor).st_size != draft.begin:
                os.ftruncate(descriptor, draft.begin)
            self._check_lock()  # without it two processes would sign one size
            try:
                write_whole(descriptor, bytes(draft.data))
            except OSError:
                os.ftruncate(descriptor, draft.begin)
                raise
            try:
                os.fdatasync(descriptor)
                # A turn that was killed may have left the name of the segment unsynced.
                if draft.is_new or standing is None or not standing.is_known:
                    sync_directory(author.files.directory)
            except OSError as error:
                self._seal(after, error)
                raise
        finally:
            os.close(descriptor)
        self._standing, self._key = after, None
        self._keep_edge(after)

    def _check_lock(self) -> None:
        if self._process != process() or not self._lock.is_in_place():
            raise LedgerBusy(
                f"{self._author.files.lock}: expected the lock file that this process holds, got another or none; "
                "nothing was written; the file must not be removed while a process is at work"
            )

    def _leave(self, standing: Standing) -> None:
        """Sync a full segment before the next one begins, since a turn that was killed may not have done so."""
        descriptor = open_segment(self._author.files.segment(standing.segment), self._author.file_mode)
        try:
            os.ftruncate(descriptor, standing.note.line.end.offset)
            os.fdatasync(descriptor)
        except OSError as error:
            self._seal(standing, error)
            raise
        finally:
            os.close(descriptor)

    def _cut_later(self, number: int) -> None:
        """Remove segments after the one being written, which a turn left that ended before its note was whole."""
        while self._author.files.segment(number + 1).exists():
            number += 1
            self._author.files.segment(number).unlink()

    def _seal(self, standing: Standing, error: OSError) -> None:
        """Let no line follow in this segment, since the kernel may have dropped pages and will not report it again."""
        self._keep_edge(replace(standing, sealed=f"fdatasync failed: {described(error)}"))
        self._standing = self._key = None

    def _keep_edge(self, standing: Standing) -> None:
        with contextlib.suppress(OSError):  # a cache
            if self._edges is None:
                self._edges = EdgeFile(self._author.files, self._author.file_mode)
            self._edges.keep(standing)

    def _finish(self, key: EpochKey) -> None:
        """Complete a change of the key: archive it and erase the previous one. If that fails, the next turn does it."""
        self._key = key
        if self._standing is None:
            return
        try:
            self._archive(self._standing, key)
            self._key_file().keep_only(key)
        except OSError as error:
            self._author.say("ledger key", f"the next turn finishes a change of the ledger's key: {error}")

    def _archive(self, standing: Standing, key: EpochKey) -> None:
        """Make sure that `ledger.keys` holds a key that was announced.

        Raises:
            OSError: the key may not be there.
        """
        author, vkey = self._author, key.key.verifier(standing.origin)
        if author.archived == vkey:
            return
        archive = EpochKeys(author.files.keys, author.file_mode)
        record = None if archive.has(vkey) else announcement_of(standing.log, vkey)
        if record is not None:
            archive.add([record])
        author.archived = vkey

    def _with_room(self, work: Callable[[], None]) -> None:
        """Do work that must succeed on a full disk. Retry it for as long as the reserve has pieces to give back."""
        while True:
            try:
                work()
                return
            except OSError as error:
                if error.errno not in FULL or not self._reserve.give_back():
                    raise


def _named(former: Standing | LedgerLog, reason: str) -> dict[str, Any]:
    """Return a new ledger's description of the former one: its last note, and the hash of the line before that."""
    if isinstance(former, LedgerLog):
        unknown = {"origin": None, "size": 0, "root": None, "hash": None}
        return {**unknown, "directory_id": former.directory_id, "reason": reason}
    checkpoint = former.note.checkpoint
    return {
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": base64.b64encode(checkpoint.root).decode(),
        "hash": former.note.line.tail.prev_hash,
        "directory_id": former.log.directory_id,
        "reason": reason,
    }
