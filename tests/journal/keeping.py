"""An exporter whose destination takes everything."""

from __future__ import annotations

from otel_audit.delivery.outcomes import Accepted, Batch, ExportOutcome
from tests.journal.writing import ids_of

__all__ = ["Keeping"]


class Keeping:
    """Keeps the lines, and names the application's events among them."""

    name = "keeping"
    delay_s = 0.05

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    @property
    def ids(self) -> list[str]:
        """The ids of the events."""
        return ids_of(self.lines)

    def export(self, batch: Batch) -> ExportOutcome:
        """See `Exporter`."""
        self.lines += [line.content for line in batch.lines]
        return Accepted()

    def close(self) -> None:
        """See `Exporter`."""
