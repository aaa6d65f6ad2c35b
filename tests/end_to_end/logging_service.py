"""A service for the tests: logs events under spans from eight threads and an event loop, and says what it logged.

Usage: `python -m tests.end_to_end.logging_service EVENTS [--then-hang]`. Prints `logged` on stdout when all events are
acknowledged. With `--then-hang` it then waits to be killed; without, it flushes and ends.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time

from opentelemetry.sdk.trace import TracerProvider

import otel_audit
from otel_audit import AuditEvent, AuditLogger, AuditPrincipal, AuditSource

THREADS = 8
tracer = TracerProvider().get_tracer("logging_service")
PRINCIPAL = AuditPrincipal(username="alice", roles=["reader", "writer"], auth_type="oidc")


def log_from_a_thread(audit: AuditLogger, name: str, count: int) -> None:
    for number in range(count):
        with tracer.start_as_current_span("call"):
            audit.log_mcp_call(
                request_id=f"{name}-{number}",
                tool_name="get_online_features",
                principal=PRINCIPAL,
                source=AuditSource(ip="192.0.2.7", transport="mcp-http"),
                outcome="denied" if number % 10 == 0 else "success",
                duration_ms=number / 8,
            )


async def log_from_tasks(audit: AuditLogger, count: int) -> None:
    async def one(number: int) -> None:
        with tracer.start_as_current_span("request"):
            await asyncio.sleep(0)
            await audit.alog(AuditEvent(event_type="http.request", request_id=f"task-{number}", outcome="success"))

    await asyncio.gather(*(one(number) for number in range(count)))


def main(events: int, *, then_hang: bool) -> None:
    audit = otel_audit.configure()
    share = events // (THREADS + 2)
    threads = [
        threading.Thread(target=log_from_a_thread, args=(audit, f"thread-{index}", share)) for index in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    asyncio.run(log_from_tasks(audit, events - THREADS * share))
    for thread in threads:
        thread.join()
    print("logged", flush=True)
    while then_hang:
        time.sleep(1)
    report = audit.flush(timeout_s=60)
    assert report.complete, report


if __name__ == "__main__":
    main(int(sys.argv[1]), then_hang="--then-hang" in sys.argv)
