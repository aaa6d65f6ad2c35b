"""How late an event loop runs what is due, while the same process records and exports thousands of events a second."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.contenders import Log
from benchmarks.measurement import Series, interleaved
from benchmarks.receiver import Receiver
from benchmarks.workload import Call

__all__ = ["IDLE_ROW", "MAX_MS", "OURS_ROW", "P99_MS", "PER_SECOND", "loop_lag"]

P99_MS: Final = "p99_ms"
MAX_MS: Final = "max_ms"

IDLE_ROW: Final = "a loop that logs nothing"
OURS_ROW: Final = "otel_audit, exporting over OTLP"
PER_SECOND: Final = 4000
"""How many events the loop logs a second."""
_TICK_S: Final = 0.005


def loop_lag(
    calls: Sequence[Call], rounds: int, receiver: Receiver, directory: Path, tell: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Return how much later than asked a sleep of 5 ms ends, in milliseconds, while the loop logs `calls`."""

    def ours() -> Mapping[str, float]:
        with (
            tempfile.TemporaryDirectory(dir=directory) as place,
            contenders.ours(Path(place), calls, receiver.logs_url) as (log, logger),
        ):
            found = asyncio.run(_lag(log, len(calls)))
            logger.flush(60.0)
        receiver.take()
        return found

    return interleaved(
        {IDLE_ROW: lambda: asyncio.run(_lag(lambda number: None, len(calls))), OURS_ROW: ours}, rounds, tell
    )


async def _lag(log: Log, count: int) -> Mapping[str, float]:
    late_s: list[float] = []
    each_tick = int(PER_SECOND * _TICK_S)
    for first in range(0, count, each_tick):
        for number in range(first, min(first + each_tick, count)):
            log(number)
        due = time.perf_counter() + _TICK_S
        await asyncio.sleep(_TICK_S)
        late_s.append(time.perf_counter() - due)
    late_s.sort()
    return {P99_MS: late_s[len(late_s) * 99 // 100] * 1000, MAX_MS: late_s[-1] * 1000}
