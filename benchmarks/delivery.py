"""From the call to the collector's acknowledgement: CPU an event, events a second, and how many got lost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.contenders import Log
from benchmarks.measurement import Series, interleaved
from benchmarks.receiver import Receiver
from benchmarks.server import shipping
from benchmarks.spans import active_span
from benchmarks.workload import Call

__all__ = ["CPU_US", "LOST", "OURS_ROW", "PER_SECOND", "SDK_ROW", "delivery"]

CPU_US: Final = "cpu_us"
PER_SECOND: Final = "per_second"
LOST: Final = "lost_share"

SDK_ROW: Final = "OTel SDK, queue for all events"
OURS_ROW: Final = "otel_audit"
GRPC_ROW: Final = "otel_audit, over gRPC"
SHIP_ROW: Final = "otel_audit, shipped by another process"
CHEAPEST_ROW: Final = "otel_audit, log_authz alone"
_SDK_DEFAULT_ROW: Final = "OTel SDK, default queue"
_FLUSH_TIMEOUT_S: Final = 120.0
_OVER_HTTP: Final = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
_SDK_QUEUE: Final = 2048  # its default, and not less than a batch


def delivery(
    calls: Sequence[Call], rounds: int, receiver: Receiver, directory: Path, tell: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Log as fast as one thread can, wait until all is acknowledged. CPU is that of the whole producing process."""
    authz = [call for call in calls if call.kind == "authz"]
    return interleaved(
        {
            SDK_ROW: lambda: _sdk(calls, receiver, max(len(calls), _SDK_QUEUE)),
            _SDK_DEFAULT_ROW: lambda: _sdk(calls, receiver, None),
            OURS_ROW: lambda: _ours(calls, receiver, directory),
            CHEAPEST_ROW: lambda: _ours(authz * (len(calls) // len(authz)), receiver, directory),
            GRPC_ROW: lambda: _ours(calls, receiver, directory, protocol="grpc"),
            SHIP_ROW: lambda: _shipped(calls, receiver, directory),
        },
        rounds,
        tell,
    )


def _sdk(calls: Sequence[Call], receiver: Receiver, queue: int | None) -> Mapping[str, float]:
    with contenders.sdk(receiver.logs_url, calls, queue=queue) as (log, flush):
        return _measure(log, flush, calls, receiver)


def _ours(
    calls: Sequence[Call], receiver: Receiver, directory: Path, *, protocol: str = "http/protobuf"
) -> Mapping[str, float]:
    endpoint = receiver.grpc_url if protocol == "grpc" else receiver.logs_url
    with (
        tempfile.TemporaryDirectory(dir=directory) as place,
        contenders.ours(Path(place), calls, endpoint, protocol=protocol) as (log, logger),
    ):
        return _measure(log, lambda: logger.flush(_FLUSH_TIMEOUT_S).complete, calls, receiver)


def _shipped(calls: Sequence[Call], receiver: Receiver, directory: Path) -> Mapping[str, float]:
    """As `_ours`, but what it takes to deliver is the CPU time of another process."""
    with (
        tempfile.TemporaryDirectory(dir=directory) as place,
        shipping(Path(place), {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": receiver.logs_url, **_OVER_HTTP}),
        contenders.ours(Path(place), calls, receiver.logs_url, export="ship") as (log, logger),
    ):
        return _measure(log, lambda: logger.flush(_FLUSH_TIMEOUT_S).complete, calls, receiver)


def _measure(log: Log, flush: Callable[[], bool], calls: Sequence[Call], receiver: Receiver) -> Mapping[str, float]:
    with active_span():
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        for number in range(len(calls)):
            log(number)
        flushed = flush()
        wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    if not flushed:
        raise RuntimeError(f"expected a flush within {_FLUSH_TIMEOUT_S:g} s, got none; is the machine overloaded?")
    arrived = len(receiver.take())
    if not arrived:
        raise RuntimeError(f"expected {len(calls)} records at {receiver.logs_url}, got none")
    return {
        CPU_US: cpu / arrived / 1000,  # what was lost was not delivered: who loses half of it pays double
        PER_SECOND: arrived / wall * 1e9,
        LOST: 1 - arrived / len(calls),
    }
