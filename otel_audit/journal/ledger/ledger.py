"""The ledger of a directory, for one process. It takes turns, in which it writes and signs entries."""

from __future__ import annotations

import contextlib
import random
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import LedgerBusy
from otel_audit.journal.ledger.draft import SEGMENT_BYTES, Author, Telling
from otel_audit.journal.ledger.entries import Entry, Kind, SignedNote, statements_backwards
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.ledger.identity import Identity
from otel_audit.journal.ledger.turn import Turn, Written
from otel_audit.journal.locks import FileLock
from otel_audit.signing.keys import import_signatures
from otel_audit.threads import real_sleep, watch

__all__ = ["Ledger"]

_WAIT_S: Final = 2.0
_POLL_MIN_S: Final = 0.001
_POLL_S: Final = 0.1
_URGENT_POLL_S: Final = 0.005
_ASK_EVERY_NS: Final = 60 * 10**9


class Ledger:
    """The ledger of a directory, for one process. Any thread may use it; each waits for the others.

    `log_name` is the name of a new ledger; an existing one keeps its own. `describe` returns the description of the
    writer for each segment header, as for a stream. `say` is called with a kind and a text if a person should look at
    something.
    """

    def __init__(
        self,
        directory: Path,
        log_name: str,
        describe: Callable[[], Mapping[str, Any]],
        *,
        identity: Identity | None = None,
        file_mode: int = 0o600,
        segment_bytes: int = SEGMENT_BYTES,
        say: Callable[[str, str], object] = lambda kind, text: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._author = Author(
            LedgerFiles(directory),
            log_name,
            describe,
            identity=identity or Identity(),
            file_mode=file_mode,
            segment_bytes=segment_bytes,
            say=say,
            clock=clock,
        )
        self._latest: SignedNote | None = None
        self._ask_at = 0.0
        self._turns: weakref.WeakSet[Turn] = weakref.WeakSet()
        watch(self)

    @property
    def files(self) -> LedgerFiles:
        """The files of the ledger."""
        return self._author.files

    @property
    def latest(self) -> SignedNote | None:
        """The last note that a turn of this process saw. This needs neither a lock nor the disk."""
        return self._latest

    def tell(self, entries: Sequence[Telling]) -> Written:
        """Take a turn and write these entries. They are durable and signed on return.

        Raises:
            LedgerBusy: nothing was written, because others had the turn for two seconds.
            OSError: the entries may not be durable, so nothing that they announce may be done.
        """
        with self.turn() as turn:
            return turn.write(entries)

    @contextlib.contextmanager
    def turn(
        self, *, wait_s: float = _WAIT_S, is_urgent: bool = False, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Turn]:
        """Hold the turn inside the block, while nobody else writes. Nothing is written before `Turn.write`.

        If many processes wait, those whose entries are urgent usually come first, and among them those that have used
        up most of their wait. `stopped` ends the wait early.

        Raises:
            LedgerBusy: others had the turn for the whole wait, or it was stopped.
            OSError: the lock file can be neither opened nor created.
        """
        import_signatures()  # not within the turn, of which it would take three quarters
        lock = self._locked(wait_s, _URGENT_POLL_S if is_urgent else _POLL_S, stopped)
        turn = Turn(self._author, lock)
        self._turns.add(turn)
        try:
            yield turn
        finally:
            self._latest = turn.note or self._latest
            turn.close()

    def countersign(self) -> bool:
        """Let the identity's command sign the last note if a signature is due. Return True if it did.

        The command runs without the lock, for at most half a minute, and once in 60 s among all processes. A note that
        only adds a signature is not signed, or this would never end.

        Raises:
            LedgerBusy: as `tell`.
            OSError: as `tell`.
        """
        author = self._author
        if not author.identity.has_command or time.monotonic() < self._ask_at:
            return False
        self._ask_at = time.monotonic() + _ASK_EVERY_NS / 1e9
        with self.turn() as turn:
            log, note = turn.log, turn.durable_note()
        if note is None or not _is_worth_a_signature(log, author.clock()):
            return False
        signature = author.identity.ask(note.note, note.checkpoint.origin)
        if signature is None:
            return False
        self.tell([(Kind.SIGNATURE, {"size": note.checkpoint.size, "line": str(signature)})])
        return True

    def _locked(self, wait_s: float, longest_s: float, stopped: Callable[[], bool]) -> FileLock:
        """Take the lock, for which others may wait too. Whoever tries more often is more likely to be next.

        There is no queue: a process that is stopped while it waits would hold up everybody behind it.
        """
        deadline = time.monotonic() + wait_s
        while True:
            lock = FileLock.acquire(self._author.files.lock, mode=self._author.file_mode)
            if lock is not None:
                return lock
            left_s = deadline - time.monotonic()
            if left_s <= 0 or stopped():
                raise LedgerBusy(
                    f"{self._author.files.lock}: expected a turn within {round(wait_s, 1):g} s, got none; another "
                    "process has it, or was stopped while it had it: `fuser` shows which"
                )
            # Random, so that not all try at the same moments.
            real_sleep(random.uniform(0, max(_POLL_MIN_S, longest_s * left_s / wait_s)))

    def hold(self) -> Iterator[None]:
        """See `Forkable`. A fork does not wait for the disk; whatever a turn holds is left to the parent."""
        yield

    def held(self) -> None:
        """See `Forkable`."""

    def forked(self) -> None:
        """Leave lock and keys to the parent, in a forked child."""
        for turn in list(self._turns):
            turn.abandon()
        self._turns.clear()
        self._author.identity.forked()


def _is_worth_a_signature(log: LedgerLog, now_ns: int) -> bool:
    """Return True if the last signature is at least 60 s old and other entries have followed it."""
    says_more = False
    for each in statements_backwards(log):
        if isinstance(each, Entry):
            if each.kind == Kind.SIGNATURE:
                return says_more and abs(now_ns - each.line.tail.time_ns) >= _ASK_EVERY_NS
            says_more = True
    return says_more
