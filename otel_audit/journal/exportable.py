"""What delivery needs of a stream, wherever its lines are: in files, or in memory."""

from __future__ import annotations

from typing import Protocol

from otel_audit.journal.cursor import Position, Progress
from otel_audit.journal.reader import Chunk

__all__ = ["Exportable", "LineReader", "ProgressKeeper"]


class LineReader(Protocol):
    """Reads whole lines from any position on. For one thread at a time."""

    def read(self, position: Position, *, max_lines: int, max_bytes: int, until: Position | None = None) -> Chunk:
        """The next lines, at least one if there is one; none behind `until`."""

    def sync(self) -> None:
        """What was read is as durable as it can be."""

    def close(self) -> None:
        """Let go of what is read."""


class ProgressKeeper(Protocol):
    """How far each exporter has come. Any thread."""

    @property
    def note(self) -> str | None:
        """What was wrong with what was kept before."""

    @property
    def ended(self) -> bool:
        """Nothing more will come, and all was delivered."""

    def progress(self, exporter: str) -> Progress:
        """How far this exporter has come."""

    def seen(self, exporter: str) -> Progress:
        """Its progress as onlookers see it."""

    def advance(self, exporter: str, progress: Progress) -> None:
        """Keep the progress of one exporter."""


class Exportable(Protocol):
    """The right to export one stream, until `release`."""

    @property
    def stream_id(self) -> str:
        """The id of the stream."""

    @property
    def cursor(self) -> ProgressKeeper:
        """What is kept of its export."""

    @property
    def released(self) -> bool:
        """The right is given back: who exports stops."""

    @property
    def ended(self) -> bool:
        """The writer is gone, and somebody has to keep that the stream is over."""

    def durable(self) -> Position | None:
        """How far it may be exported now; None: as far as it is written."""

    def reader(self) -> LineReader:
        """A reader of its lines."""

    def has_lines_after(self, position: Position) -> bool:
        """True when a whole line stands behind this position."""

    def conclude(self) -> None:
        """Keep that the stream is over, if it is."""

    def release(self) -> None:
        """Others may export it."""

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
