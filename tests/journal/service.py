"""A service whose disk fails, and what must be true of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.settings import OnLoss, Settings
from otel_audit.trail import Trail
from tests.chain_check import application_events, read_streams
from tests.journal.keeping import Keeping
from tests.servers.polling import poll

__all__ = ["Service", "a_service"]


@dataclass
class Service:
    """A service that logs, whatever its disk does, and remembers what it was told."""

    audit: AuditLogger
    directory: Path
    rule: OnLoss
    acknowledged: list[str] = field(default_factory=list)
    lost: int = 0

    def log(self, name: str, *, padding: int = 0) -> bool:
        """Log one event; whether it is on the disk. Fails when the loss rule is not kept."""
        try:
            receipt = self.audit.log(AuditEvent(event_type="test", request_id=name, detail="x" * padding))
        except AuditUnavailable:
            assert self.rule is OnLoss.CLOSED, "the application was stopped by a loss"
            self.lost += 1
            return False
        assert receipt is not None
        if receipt.durable:
            self.acknowledged.append(name)
            return True
        assert self.rule is OnLoss.OPEN, "a loss was not told"
        self.lost += 1
        return False

    def fill(self) -> None:
        """Log until the disk takes no more."""
        for number in range(100_000):
            if not self.log(f"fill-{number}", padding=300):
                return
        raise AssertionError("the disk was never full")

    def recover(self) -> None:
        """Log until an event is taken, as a service does that nobody looks after."""
        numbers = iter(range(10_000))
        poll(lambda: self.log(f"again-{next(numbers)}"), what="an event on the disk again")

    def assert_accounted_for(self) -> None:
        """Nothing acknowledged is missing, and the losses stand in the trail and in the numbers."""
        self.audit.close()
        assert [event["request_id"] for event in application_events(self.directory)] == self.acknowledged
        gaps = [event["gap"] for events in read_streams(self.directory).values() for event in events if "gap" in event]
        assert sum(gap["lines"] for gap in gaps) == self.lost
        stats = self.audit.stats()
        assert stats.dropped == self.lost > 0
        assert stats.emitted == len(self.acknowledged) + self.lost
        assert stats.emitted == stats.exported + stats.pending + stats.quarantined + stats.dropped


@contextmanager
def a_service(
    directory: Path, rule: OnLoss, *, exporters: list[Keeping] | None = None, **more: object
) -> Iterator[Service]:
    settings = Settings.load(
        {}, {"directory": str(directory), "export": "none", "on_loss": rule, "free_bytes": 0, **more}
    )
    notices = Notices()
    trail = Trail(settings, exporters=exporters, notices=notices)
    with AuditLogger(trail, on_loss=rule, notices=notices) as audit:
        yield Service(audit, directory, rule)
