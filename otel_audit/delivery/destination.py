"""An exporter as seen by the streams that share it: its last answers, and the wait before the next attempt."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.delivery.outcomes import (
    Accepted,
    Batch,
    Exporter,
    ExportOutcome,
    Refused,
    RefusedFor,
    Unavailable,
    UnavailableFor,
)

__all__ = ["Backoff", "Destination"]


_STUCK_AFTER_S = 60.0  # our own exporters return sooner, unless a longer time-out was set


class Destination:
    """An exporter and its state across all streams."""

    def __init__(
        self, exporter: Exporter, *, clock: Callable[[], float] = time.monotonic, metrics: AuditMetrics | None = None
    ) -> None:
        self.exporter = exporter
        self.clock = clock
        self._metrics = metrics
        self._sending_since: float | None = None
        self.is_away = False  # by its last answer, which was about neither the size of the batch nor a record in it
        self.accepted = 0  # exports that were accepted, ever
        self.last_accepted: Batch | None = None  # a single line, to send again to test whether anything is accepted
        self.largest_accepted: Batch | None = None  # a single line, to tell a lower limit from too much to do
        self.warnings = 0

    @property
    def stuck(self) -> str:
        """A message if an export has taken longer than a minute, as a foreign exporter may; otherwise empty."""
        since = self._sending_since
        late_s = 0.0 if since is None else self.clock() - since
        return f"an export has been under way for {late_s:.0f} s" if late_s >= _STUCK_AFTER_S else ""

    def send(self, batch: Batch) -> ExportOutcome:
        """Export one batch. An exporter that raises counts as a server error, which may be due to one record."""
        begun = time.perf_counter()
        self._sending_since = self.clock()
        outcome = self._exported(batch)
        self._sending_since = None
        self.is_away = isinstance(outcome, Unavailable) and outcome.cause is UnavailableFor.ENDPOINT
        was_sent = not (isinstance(outcome, Refused) and outcome.about is RefusedFor.LIMIT)
        if self._metrics is not None and was_sent:
            self._metrics.exported(self.exporter.name, outcome, time.perf_counter() - begun)
        if isinstance(outcome, Accepted):
            self.accepted += 1
            self.last_accepted = Batch(batch.header, batch.lines[-1:])
            if self.largest_accepted is None or batch.largest_bytes > self.largest_accepted.largest_bytes:
                self.largest_accepted = Batch(batch.header, [max(batch.lines, key=lambda line: len(line.content))])
            if outcome.warning:
                self.warnings += 1
        return outcome

    def forget_largest(self) -> None:
        """See `Endpoint`."""
        self.largest_accepted = None

    def _exported(self, batch: Batch) -> ExportOutcome:
        try:
            return self.exporter.export(batch)
        except Exception as error:
            return Unavailable(f"{type(error).__name__} in exporter {self.exporter.name}", UnavailableFor.SERVER_ERROR)


_FIRST_S = 0.5
_RETRY_AFTER_MAX_S = 300.0


class Backoff:
    """A wait that doubles from half a second up to a cap, with full jitter in the upper half, for ever.

    Jitter keeps a hundred processes from retrying at the same moment. Source: OTLP specification, "All Errors".
    """

    def __init__(self, cap_s: float) -> None:
        self._cap_s = cap_s
        self._next_s = _FIRST_S

    def failed(self, retry_after_s: float | None = None) -> float:
        """Return the seconds to wait after one more failure: the server's wish, up to five minutes, or the back-off.

        Even if the server asks for an immediate retry, the wait is at least half a second.
        """
        wait_s = min(self._next_s, self._cap_s)
        self._next_s = min(self._next_s * 2, self._cap_s)
        if retry_after_s is not None:
            return max(min(retry_after_s, _RETRY_AFTER_MAX_S), _FIRST_S)
        return wait_s * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Reset the wait, so that the next failure counts as the first."""
        self._next_s = _FIRST_S
