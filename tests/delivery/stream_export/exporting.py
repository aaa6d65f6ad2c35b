"""The export of one stream to one destination, step by step, and how a test writes, judges and waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.stream_export import Idle, Step, StreamExport
from otel_audit.journal.journal import Journal
from otel_audit.journal.quarantine import Quarantined
from otel_audit.journal.shipment import Shipment, take
from tests.journal.writing import append
from tests.servers.otlp_server import Answer

__all__ = ["BAD_REQUEST", "Clock", "Open", "export_of", "quarantine_of", "refuses", "run", "write"]

BAD_REQUEST = Answer(400, b"bad record", (("Content-Type", "text/plain"),))


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Open = Callable[..., StreamExport]


@contextmanager
def export_of(journal: Journal, destination: Destination, batch_count: int) -> Iterator[StreamExport]:
    shipment = _shipment(journal)
    export = StreamExport(shipment, destination, batch_count=batch_count)
    yield export
    export.close()
    shipment.cursor.close()
    shipment.ship_lock.release()


def _shipment(journal: Journal) -> Shipment:
    assert journal.stream is not None
    shipment = take(journal.stream.files)
    assert shipment is not None
    return shipment


def write(journal: Journal, *names: object) -> None:
    for name in names:
        append(journal, name)


def run(export: StreamExport, clock: Clock, *, steps: int = 200) -> list[Step]:
    """Steps until there is nothing more to send; no wait is real."""
    taken: list[Step] = []
    for _ in range(steps):
        taken.append(export.step())
        clock.now += 120.0
        if isinstance(taken[-1], Idle) and not export.blocked:
            return taken
    raise AssertionError(f"expected an end within {steps} steps, last: {taken[-5:]}")


def quarantine_of(export: StreamExport) -> tuple[Quarantined, ...]:
    """What `status` lists of the lines that were set aside."""
    return export.shipment.cursor.seen("otlp").quarantine


def refuses(*bad: str, answer: Answer = BAD_REQUEST) -> Callable[[Sequence[str]], Answer | None]:
    return lambda names: answer if set(names) & set(bad) else None
