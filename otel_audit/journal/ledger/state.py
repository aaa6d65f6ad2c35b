"""How a directory's ledger stands: its name, the key that signs, how long it is and how old its last note is.

For whoever looks on, as `status` and `doctor` do: no lock is taken, and of the ledger only its ends are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from otel_audit.errors import NoteMalformed
from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.ledger.entries import Entry, Kind, SignedNote, last_note, statements
from otel_audit.journal.ledger.epochs import EpochRecord
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.line_file import pieces_backwards

__all__ = ["LedgerState"]


@dataclass(frozen=True, slots=True)
class LedgerState:
    """What the last note of the ledger in force says, and when it was written, in nanoseconds since 1970.

    `vkey` is that of the key of the epoch which signed it; empty where the archive of the keys does not have it.
    `begun_anew`: why the ledger before this one could not be continued; empty if there was none. `exporters`: by name,
    how far the ledger was delivered; nowhere if there is none.
    """

    origin: str
    vkey: str
    size: int
    note_time_ns: int
    begun_anew: str = ""
    exporters: Mapping[str, Progress] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path) -> LedgerState | None:
        """Return it as it is now; None where there is no ledger, or no note of it can be read.

        Raises:
            OSError: a file of it cannot be read.
        """
        files = LedgerFiles(directory)
        log, note = files.latest(), last_note(files)
        if log is None or note is None:
            return None
        origin, size = note.checkpoint.origin, note.checkpoint.size
        exporters, _ = read_cursor(log.cursor)
        return cls(origin, _vkey_of(files, note), size, note.line.tail.time_ns, _reason_of(log), exporters)

    def waiting(self, exporter: str) -> int:
        """Return how many lines an exporter lacks of those up to the last note, which is a line too."""
        return max(0, self.size + 1 - self.exporters[exporter].position.seq)

    @property
    def is_stuck(self) -> bool:
        """Return True if an exporter cannot deliver it, or its destination refused a line."""
        return any(each.blocked or each.quarantine for each in self.exporters.values())

    def age_s(self, now_ns: int) -> float:
        """Return how old the last note is, in seconds; 0 where the clock was set back."""
        return max(0.0, (now_ns - self.note_time_ns) / 1e9)


def _vkey_of(files: LedgerFiles, note: SignedNote) -> str:
    signers = {(each.name, each.key_id) for each in note.note.signatures}
    with suppress(FileNotFoundError):
        for piece in pieces_backwards(files.keys):
            with suppress(NoteMalformed, ValueError):
                vkey = EpochRecord.parse(piece.content or b"").vkey
                if (vkey.name, vkey.key_id) in signers:
                    return str(vkey)
    return ""


def _reason_of(log: LedgerLog) -> str:
    begin = next((each for each in statements(log) if isinstance(each, Entry)), None)
    former = begin.content.get("former") if begin is not None and begin.kind == Kind.BEGIN else None
    return str(former.get("reason")) if isinstance(former, dict) else ""
