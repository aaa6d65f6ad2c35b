"""A service for the tests that logs from threads, and holds its numbers against what it did, over and over.

Usage: `python -m tests.end_to_end.truthful_service LEDGER`. In the directory LEDGER a byte is appended to `begun`
before each call and to `acknowledged` after it, to `samples` for each look at the numbers, and a line to `lies` for
each that was wrong. It ends, after a flush, when its standard input is closed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import otel_audit
from otel_audit import AuditEvent, AuditLogger, Stats

THREADS = 4
PAUSE_S = 0.01


class Tally:
    """A file that grows by a byte for each thing counted; also of this process alone."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._lock = threading.Lock()
        self.own = 0

    def add(self) -> None:
        with self._lock:
            os.write(self._descriptor, b".")
            self.own += 1


def log_on(audit: AuditLogger, begun: Tally, acknowledged: Tally, over: threading.Event) -> None:
    while not over.wait(PAUSE_S):
        begun.add()
        receipt = audit.log(AuditEvent(event_type="test", outcome="success"))
        if receipt is not None and receipt.durable:
            acknowledged.add()


def lies_of(stats: Stats, before: Stats, *, least: int, most: int) -> Iterator[str]:
    if stats.emitted != stats.exported + stats.pending + stats.quarantined + stats.dropped:
        yield "the sum"
    if min(stats.exported, stats.pending, stats.quarantined, stats.dropped) < 0:
        yield "less than none"
    if not least <= stats.emitted <= most:
        yield f"not from {least} to {most}"
    if stats.emitted < before.emitted or stats.exported < before.exported:
        yield f"less than before: {before}"


def look_on(audit: AuditLogger, begun: Tally, acknowledged: Tally, ledger: Path, over: threading.Event) -> None:
    samples = Tally(ledger / "samples")
    before = audit.stats()
    with (ledger / "lies").open("a", buffering=1) as lies:
        while not over.wait(PAUSE_S):
            least = acknowledged.own
            stats = audit.stats()
            for lie in lies_of(stats, before, least=least, most=begun.own):
                lies.write(f"{lie}: {stats}\n")
            samples.add()
            before = stats


def run(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()


def main(ledger: Path) -> None:
    audit = otel_audit.configure()
    begun, acknowledged = Tally(ledger / "begun"), Tally(ledger / "acknowledged")
    over = threading.Event()
    threads = [
        threading.Thread(target=log_on, args=(audit, begun, acknowledged, over), daemon=True) for _ in range(THREADS)
    ]
    looks = threading.Thread(target=look_on, args=(audit, begun, acknowledged, ledger, over), daemon=True)
    run([*threads, looks])
    sys.stdin.read()
    over.set()
    for thread in (*threads, looks):
        thread.join()
    report = audit.flush(timeout_s=60)
    assert report.complete, report
    stats = audit.stats()
    assert stats.emitted == stats.exported == begun.own, stats


if __name__ == "__main__":
    main(Path(sys.argv[1]))
