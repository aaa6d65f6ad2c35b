"""A service for the tests that says how much memory it takes.

Usage: `python -m tests.end_to_end.backlog_service fill EVENTS` logs so many events, says so, and waits to be killed;
`... live` logs an event every two milliseconds until a line comes on its standard input, flushes and ends. Both print
one JSON object.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import otel_audit
from otel_audit import AuditLogger, AuditPrincipal, AuditSource
from otel_audit.journal.journal import Receipt

WARM_UP = 2_000
PAUSE_S = 0.002
SAMPLE_EVERY = 500
PAGE_BYTES = resource.getpagesize()
PRINCIPAL = AuditPrincipal(username="alice", roles=["reader", "writer"], auth_type="oidc")
SOURCE = AuditSource(ip="192.0.2.7", transport="mcp-http")


class Memory:
    """The resident memory of this process, in bytes: at first, and the most that was seen since."""

    def __init__(self) -> None:
        self.first = self.most = resident_bytes()

    def look(self) -> None:
        self.most = max(self.most, resident_bytes())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def log(audit: AuditLogger, number: int) -> Receipt:
    receipt = audit.log_mcp_call(
        request_id=f"request-{number}",
        tool_name="get_online_features",
        principal=PRINCIPAL,
        source=SOURCE,
        outcome="success",
        duration_ms=number / 8,
    )
    assert receipt is not None
    assert receipt.durable
    return receipt


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(PAUSE_S)


def is_in_the_ledger(receipt: Receipt) -> bool:
    files = Path(os.environ["OTEL_AUDIT_DIR"]).glob("ledger.*.jsonl")
    return any(str(receipt.stream_id).encode() in file.read_bytes() for file in files)


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def fill(audit: AuditLogger, events: int) -> None:
    for number in range(WARM_UP):
        receipt = log(audit, number)
    wait_until(lambda: bool(audit.stats().blocked))  # the exporter has tried, and loaded what it needs
    wait_until(lambda: is_in_the_ledger(receipt))  # so has the ledger
    memory = Memory()
    begun = time.perf_counter()
    for number in range(WARM_UP, events):
        receipt = log(audit, number)
        if number % SAMPLE_EVERY == 0:
            memory.look()
    seconds = time.perf_counter() - begun
    memory.look()
    say(
        stream_id=receipt.stream_id,
        last_seq=receipt.seq,
        rss_before=memory.first,
        rss_most=memory.most,
        events_per_s=(events - WARM_UP) / seconds,
        blocked=dict(audit.stats().blocked),
        pending=audit.stats().pending,
    )
    sys.stdin.read()


def live(audit: AuditLogger) -> None:
    over = threading.Event()

    def wait_for_a_line() -> None:
        sys.stdin.readline()
        over.set()

    threading.Thread(target=wait_for_a_line, daemon=True).start()
    logged = 0

    def log_one() -> Receipt:
        nonlocal logged
        logged += 1
        return log(audit, logged - 1)

    # It goes on logging meanwhile: who waits for its turn beside the backlog is what the test counts.
    wait_until(lambda: is_in_the_ledger(log_one()) and audit.stats().exported > 0)
    memory = Memory()
    while not over.wait(PAUSE_S):
        receipt = log_one()
        memory.look()
    report = audit.flush(timeout_s=60)
    say(
        stream_id=receipt.stream_id,
        last_seq=receipt.seq,
        rss_before=memory.first,
        rss_most=memory.most,
        complete=report.complete,
        exported=audit.stats().exported,
        logged=logged,
    )


def main() -> None:
    audit = otel_audit.configure()
    match sys.argv[1:]:
        case ["fill", events]:
            fill(audit, int(events))
        case ["live"]:
            live(audit)


if __name__ == "__main__":
    main()
