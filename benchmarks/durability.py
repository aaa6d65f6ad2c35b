"""What it costs to be sure of the disk: many threads that log at once, with each durability."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.contenders import Log
from benchmarks.measurement import Series, interleaved
from benchmarks.workload import Call
from otel_audit.settings import Durability

__all__ = ["FSYNC_ROW", "OS_ROW", "THREADS", "US_PER_EVENT", "durability"]

US_PER_EVENT: Final = "us_per_event"

OS_ROW: Final = "os: survives the process"
FSYNC_ROW: Final = "fsync: survives a loss of power"
# As many as a service may have that runs each request in a thread.
THREADS: Final = 64


def durability(
    calls: Sequence[Call], rounds: int, directory: Path, tell: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Microseconds from the first call to the last receipt, by event."""
    return interleaved(
        {
            OS_ROW: lambda: _ours(calls, directory, Durability.OS),
            FSYNC_ROW: lambda: _ours(calls, directory, Durability.FSYNC),
        },
        rounds,
        tell,
    )


def _ours(calls: Sequence[Call], directory: Path, kept: Durability) -> Mapping[str, float]:
    with (
        tempfile.TemporaryDirectory(dir=directory) as place,
        contenders.ours(Path(place), calls, durability=kept) as (log, _),
    ):
        log(0)  # what is made at the first call is not the cost of an event
        return {US_PER_EVENT: _measure(log, len(calls))}


def _measure(log: Log, count: int) -> float:
    ready = threading.Barrier(THREADS + 1)

    def log_share(first: int) -> None:
        ready.wait()
        for number in range(first, count, THREADS):
            log(number)

    threads = [threading.Thread(target=log_share, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - started) / count * 1e6
