"""How far a replay came: a small file that outlives a kill, so that the same command goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

from otel_audit.replaying.parcel import Place, Trouble
from otel_audit.stores.numbered_lines import Mark

__all__ = ["ReplayState", "Tally", "state_path"]

_FORMAT: Final = 1
_TROUBLES_KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the records so far, over all runs: `read = sent + refused`.

    `unreadable` counts pieces of lines. Of each kind of trouble the first thousand are listed.
    """

    read: int = 0
    sent: int = 0
    refused: int = 0
    unreadable: int = 0
    refused_lines: tuple[Trouble, ...] = ()
    unreadable_lines: tuple[Trouble, ...] = ()

    def with_sent(self, records: int) -> Tally:
        """With records that were accepted."""
        return replace(self, read=self.read + records, sent=self.sent + records)

    def with_refused(self, troubles: Sequence[Trouble]) -> Tally:
        """With records that were refused, one each."""
        return replace(
            self,
            read=self.read + len(troubles),
            refused=self.refused + len(troubles),
            refused_lines=(*self.refused_lines, *troubles)[:_TROUBLES_KEPT],
        )

    def with_unreadable(self, troubles: Sequence[Trouble]) -> Tally:
        """With pieces that are no records."""
        return replace(
            self,
            unreadable=self.unreadable + len(troubles),
            unreadable_lines=(*self.unreadable_lines, *troubles)[:_TROUBLES_KEPT],
        )


def state_path(directory: Path, source: str, endpoint: str) -> Path:
    """The file for a source and where it goes: the same records may be sent to another place as well."""
    digest = sha256(f"{source}\n{endpoint}".encode()).hexdigest()[:32]
    return directory / f"replay-{digest}.json"


@dataclass(slots=True)
class ReplayState:
    """The marks of the files that were begun, and the tally up to there. The directory of `path` exists.

    `note` says why a state that was there is not used.
    """

    path: Path
    marks: dict[str, Mark] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    note: str = ""

    @classmethod
    def load(cls, path: Path) -> Self:
        """What an earlier run kept; a new one if there was none.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return cls(path)
        try:
            return cls(path, *_read(json.loads(stored)))
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls(path, note=f"{path}: expected the state of a replay, got something else; sending all of it")

    def keep(self, marks: Mapping[str, Mark], tally: Tally) -> None:
        """All before these marks, by file, is dealt with. It is in the file when this returns.

        Raises:
            OSError: it is not; the next run begins further back.
        """
        self.marks, self.tally = {**self.marks, **marks}, tally
        written = self.path.with_suffix(".new")
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(json.dumps(self._stored(), separators=(",", ":")).encode())
        written.rename(self.path)

    def _stored(self) -> Mapping[str, Any]:
        tally = self.tally
        return {
            "format": _FORMAT,
            "marks": self.marks,
            "read": tally.read,
            "sent": tally.sent,
            "refused": tally.refused,
            "unreadable": tally.unreadable,
            "refused_lines": tally.refused_lines,
            "unreadable_lines": tally.unreadable_lines,
        }


def _read(stored: Mapping[str, Any]) -> tuple[dict[str, Mark], Tally]:
    if stored["format"] != _FORMAT:
        raise ValueError("another format")
    marks = {
        file_id: Mark(int(offset), int(line), str(before))
        for file_id, (offset, line, before) in stored["marks"].items()
    }
    return marks, Tally(
        int(stored["read"]),
        int(stored["sent"]),
        int(stored["refused"]),
        int(stored["unreadable"]),
        _troubles(stored["refused_lines"]),
        _troubles(stored["unreadable_lines"]),
    )


def _troubles(stored: Sequence[Any]) -> tuple[Trouble, ...]:
    return tuple(Trouble(Place(str(file), int(line)), str(reason)) for (file, line), reason in stored)
