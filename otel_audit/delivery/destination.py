"""An exporter as the streams that are sent through it see it: what it answered, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from otel_audit.delivery.batch import Batch, Exporter
from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, RefusedFor, Unavailable, UnavailableFor

__all__ = ["Destination"]

_STUCK_AFTER_S = 60.0  # an exporter of ours has come back by then, unless it was given more time by hand


class Destination:
    """An exporter and what is known of it over all streams."""

    def __init__(
        self, exporter: Exporter, *, clock: Callable[[], float] = time.monotonic, metrics: AuditMetrics | None = None
    ) -> None:
        self.exporter = exporter
        self.clock = clock
        self._metrics = metrics
        self._sending_since: float | None = None
        self.accepted = 0  # exports that were accepted, ever
        self.last_accepted: Batch | None = None  # a single line: to ask with whether anything is accepted
        self.warnings = 0
        self.last_warning = ""

    @property
    def stuck(self) -> str:
        """That an export does not come back, as one of somebody else's exporter may do; empty when none is so late."""
        since = self._sending_since
        late_s = 0.0 if since is None else self.clock() - since
        return f"an export has been under way for {late_s:.0f} s" if late_s >= _STUCK_AFTER_S else ""

    def send(self, batch: Batch) -> ExportOutcome:
        """One export. An exporter that raises is as a server with an error: it may be one of the records."""
        begun = time.perf_counter()
        self._sending_since = self.clock()
        outcome = self._exported(batch)
        self._sending_since = None
        was_sent = not (isinstance(outcome, Refused) and outcome.about is RefusedFor.LIMIT)
        if self._metrics is not None and was_sent:
            self._metrics.exported(self.exporter.name, outcome, time.perf_counter() - begun)
        if isinstance(outcome, Accepted):
            self.accepted += 1
            self.last_accepted = Batch(batch.header, batch.lines[-1:])
            if outcome.warning:
                self.warnings += 1
                self.last_warning = outcome.warning
        return outcome

    def _exported(self, batch: Batch) -> ExportOutcome:
        try:
            return self.exporter.export(batch)
        except Exception as error:
            return Unavailable(f"{type(error).__name__} in exporter {self.exporter.name}", UnavailableFor.SERVER_ERROR)
