"""A service for the tests that logs on an event loop, and says how long that loop stood still.

Usage: `python -m tests.end_to_end.loop_service EVENTS`. It prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import otel_audit
from otel_audit import AuditEvent, AuditLogger

BEAT_S = 0.01
PAUSE_S = 0.001


async def longest_gap_s(over: asyncio.Event) -> float:
    """The longest time between two beats of a task that asks for one every ten milliseconds."""
    longest, last = 0.0, time.perf_counter()
    while not over.is_set():
        await asyncio.sleep(BEAT_S)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


async def longest_call_s(audit: AuditLogger, events: int) -> float:
    longest = 0.0
    for number in range(events):
        before = time.perf_counter()
        if number % 2:
            audit.log(AuditEvent(event_type="test", outcome="success"))
        else:
            await audit.alog(AuditEvent(event_type="test", outcome="success"))
        longest = max(longest, time.perf_counter() - before)
        await asyncio.sleep(PAUSE_S)
    return longest


async def main(events: int) -> None:
    audit = otel_audit.configure()
    over = asyncio.Event()
    heart = asyncio.create_task(longest_gap_s(over))
    begun = time.perf_counter()
    call_s = await longest_call_s(audit, events)
    seconds = time.perf_counter() - begun
    over.set()
    stats = audit.stats()
    print(
        json.dumps(
            {
                "gap_s": await heart,
                "call_s": call_s,
                "seconds": seconds,
                "emitted": stats.emitted,
                "pending": stats.pending,
                "blocked": dict(stats.blocked),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
