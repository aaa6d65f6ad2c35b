"""An exporter whose destination takes everything."""

from __future__ import annotations

from otel_audit.delivery.batch import Batch
from otel_audit.delivery.outcomes import Accepted, ExportOutcome
from tests.journal.writing import ids_of

__all__ = ["Keeping"]


class Keeping:
    """Keeps the ids of the application's events."""

    name = "keeping"
    delay_s = 0.05

    def __init__(self) -> None:
        self.ids: list[str] = []

    def export(self, batch: Batch) -> ExportOutcome:
        """See `Exporter`."""
        self.ids += ids_of([line.content for line in batch.lines])
        return Accepted()

    def close(self) -> None:
        """See `Exporter`."""
