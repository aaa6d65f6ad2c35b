"""What one call costs the caller, in microseconds."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.contenders import FEAST, LOGURU, STRUCTLOG, Log
from benchmarks.measurement import Series, interleaved
from benchmarks.receiver import Receiver
from benchmarks.spans import active_span
from benchmarks.workload import Call

__all__ = ["FEAST_ROW", "LOGURU_ROW", "MEAN_US", "OURS_ROW", "P99_US", "STRUCTLOG_ROW", "call_cost"]

MEAN_US: Final = "mean_us"
P99_US: Final = "p99_us"

FEAST_ROW: Final = "Feast AuditLogger, file sink"
STRUCTLOG_ROW: Final = "structlog, JSON file"
LOGURU_ROW: Final = "loguru, JSON file"
STDLIB_ROW: Final = "logging, JSON file"
OURS_ROW: Final = "otel_audit"


def call_cost(
    calls: Sequence[Call], rounds: int, receiver: Receiver, directory: Path, tell: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Mean and 99th percentile of a call for every contender that this environment has."""

    def measured(begin: Callable[[Path], AbstractContextManager[Log]]) -> Callable[[], Mapping[str, float]]:
        return lambda: _measure(begin, len(calls), directory)

    found = {
        FEAST_ROW: measured(lambda at: contenders.feast(at, calls)),
        STRUCTLOG_ROW: measured(lambda at: contenders.structlog(at, calls)),
        LOGURU_ROW: measured(lambda at: contenders.loguru(at, calls)),
        STDLIB_ROW: measured(lambda at: contenders.stdlib(at, calls)),
        "OTel SDK emit, exporter does nothing": measured(lambda at: contenders.sdk_emit(calls)),
        "OTel SDK, exporting over OTLP meanwhile": measured(lambda at: _sdk(calls, receiver.logs_url)),
        OURS_ROW: measured(lambda at: _ours(at, calls)),
        "otel_audit, exporting over OTLP meanwhile": measured(lambda at: _ours(at, calls, receiver.logs_url)),
    }
    for package, row in ((FEAST, FEAST_ROW), (STRUCTLOG, STRUCTLOG_ROW), (LOGURU, LOGURU_ROW)):
        if contenders.missing(package):
            del found[row]
    numbers = interleaved(found, rounds, tell)
    receiver.take()
    return numbers


def _measure(begin: Callable[[Path], AbstractContextManager[Log]], count: int, directory: Path) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory(dir=directory) as place, begin(Path(place)) as log, active_span():
        log(0)  # what is made at the first call, such as a stream, is not the cost of a call
        clock = time.perf_counter_ns
        took: list[int] = []
        add = took.append
        for number in range(count):
            started = clock()
            log(number)
            add(clock() - started)
    took.sort()
    return {MEAN_US: sum(took) / count / 1000, P99_US: took[count * 99 // 100] / 1000}


@contextlib.contextmanager
def _sdk(calls: Sequence[Call], endpoint: str) -> Iterator[Log]:
    with contenders.sdk(endpoint, calls, queue=None) as (log, _):
        yield log


@contextlib.contextmanager
def _ours(directory: Path, calls: Sequence[Call], endpoint: str | None = None) -> Iterator[Log]:
    with contenders.ours(directory, calls, endpoint) as (log, _):
        yield log
