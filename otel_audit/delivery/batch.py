"""What an exporter is given, and what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from otel_audit.delivery.outcomes import ExportOutcome
from otel_audit.journal.reader import Line

__all__ = ["Batch", "Exporter"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines of one segment, in order, with its header: all that a record is built from."""

    header: Mapping[str, Any]
    lines: Sequence[Line]

    @property
    def contents(self) -> list[bytes]:
        """The bytes of the lines, without newlines."""
        return [line.content for line in self.lines]

    @property
    def records(self) -> int:
        """How many records it makes: one for each line."""
        return len(self.lines)

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches, in order, of one that has more than one line."""
        middle = len(self.lines) // 2
        return Batch(self.header, self.lines[:middle]), Batch(self.header, self.lines[middle:])


class Exporter(Protocol):
    """A destination of journal lines. One call at a time, from one thread."""

    @property
    def name(self) -> str:
        """The name that its progress is kept under in the cursor."""

    @property
    def delay_s(self) -> float:
        """How long a line may wait for others to share a batch with."""

    def export(self, batch: Batch) -> ExportOutcome:
        """Send the batch and say what became of it. Never raises for what the destination did."""

    def close(self) -> None:
        """Let go of connections and files."""
