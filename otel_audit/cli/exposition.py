"""The numbers of `otel-audit status` as metrics, in Prometheus' text format.

They are collected from `AuditMetrics`, as those of a service are, and get the names that Prometheus gives to metrics
that reach it over OTLP. So the same alerts and panels work for a host whose services export no metrics. Two metrics
describe the directory itself, and are there even if it is empty or cannot be read: without them, a mistaken or
emptied directory would have no numbers, which no alert notices.

Source: "Prometheus exposition formats", text format 0.0.4; OpenTelemetry, "Prometheus and OpenMetrics compatibility".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric, NumberDataPoint, Sum
from opentelemetry.sdk.resources import Resource

from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.journal.census import ELSEWHERE, NOWHERE, Census, StreamCensus
from otel_audit.journal.counts import Counts, CountsByExporter
from otel_audit.journal.ledger.standing import LedgerState
from otel_audit.journal.room import Space

__all__ = ["directory_exposition", "exposition"]

_IN_A_GAP: Final = "audit.gap"  # the reasons stand in these lines, which nobody reads again for a count
_MISSING: Final = "lines missing"
_NAMELESS: Final = "unknown_service"
_KNOWN_TO_THE_PROCESS: Final = ("audit.export.duration", "audit.export.warnings")  # and to no file
_MISSING_JOURNAL: Final = "audit_journal_missing_ratio"
_LOOKED_AT: Final = "audit_status_timestamp_seconds"
_UNITS: Final = {"s": "_seconds", "1": "_ratio"}  # a unit in braces, such as {record}, is a remark


def exposition(counted: Census, space: Space, ledger: LedgerState | None) -> str:
    """Return the metrics of a directory and of each service in it.

    What retention removed is counted if all streams are of one service; the ledger does not say whose it was.
    """
    by_service: dict[str, list[StreamCensus]] = {}
    for stream in counted.streams:
        by_service.setdefault(stream.service_name or _NAMELESS, []).append(stream)
    removed = counted.removed if len(by_service) == 1 else Counts()
    families: dict[str, list[tuple[Mapping[str, str], Metric]]] = {}
    for service, streams in sorted(by_service.items()):
        labels = {"service_name": service, "directory": str(counted.directory)}
        for metric in _collected(_numbers(streams, removed, space, ledger)):
            families.setdefault(_name_of(metric), []).append((labels, metric))
    is_missing = not counted.streams and ledger is None  # retention leaves the ledger of a service that is long idle
    of_directory = directory_exposition(counted.directory, counted.time_ns, is_missing=is_missing)
    return of_directory + "".join(line for name, members in families.items() for line in _family(name, members))


def directory_exposition(directory: Path, time_ns: int, *, is_missing: bool) -> str:
    """Return the metrics of a directory alone: whether it lacks a journal, and when somebody looked."""
    labels = f'{{directory="{_quoted(str(directory))}"}}'
    return (
        f"# HELP {_MISSING_JOURNAL} 1 if the directory is empty, does not exist or cannot be read\n"
        f"# TYPE {_MISSING_JOURNAL} gauge\n{_MISSING_JOURNAL}{labels} {is_missing:d}\n"
        f"# HELP {_LOOKED_AT} When otel-audit status last looked at the directory\n"
        f"# TYPE {_LOOKED_AT} gauge\n{_LOOKED_AT}{labels} {time_ns / 1e9:.3f}\n"
    )


def _numbers(
    streams: Sequence[StreamCensus], removed: Counts, space: Space, ledger: LedgerState | None
) -> CountsByExporter:
    """Return what a service would count that had written these streams."""
    exporters: dict[str, Counts] = {}
    for stream in streams:
        for name, counts in _by_exporter(stream).items():
            exporters[name] = exporters.get(name, removed) + counts
    total = sum((stream.counts for stream in streams), removed)
    missing = sum(stream.missing for stream in streams)
    notes = {} if ledger is None else {ledger.origin: (ledger.size, ledger.note_time_ns)}
    return CountsByExporter(
        total.emitted,
        {_IN_A_GAP: total.dropped - missing, _MISSING: missing},
        exporters,
        blocked={name for stream in streams for name in stream.blocked},
        is_low=space.is_low,
        notes=notes,
    )


def _by_exporter(stream: StreamCensus) -> dict[str, Counts]:
    """Return the counts of a stream for each of its exporters. Each adds up to what was emitted."""
    counts = stream.counts
    if not stream.exporters:
        return {ELSEWHERE if counts.pending else NOWHERE: counts}
    found = {}
    for name, progress in stream.exporters.items():
        exported, quarantined = progress.counts.exported, progress.counts.quarantined
        pending = max(0, counts.emitted - counts.dropped - exported - quarantined)
        found[name] = Counts(exported, pending, quarantined, counts.dropped)
    return found


class _Known:
    """A trail whose numbers do not change any more."""

    def __init__(self, numbers: CountsByExporter) -> None:
        self._numbers = numbers

    def numbers(self) -> CountsByExporter:
        return self._numbers


def _collected(numbers: CountsByExporter) -> Iterator[Metric]:
    reader = InMemoryMetricReader()
    metrics = AuditMetrics(MeterProvider([reader], Resource.get_empty(), shutdown_on_exit=False))
    known = _Known(numbers)
    metrics.watch(known)
    data = reader.get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics if data is not None else ():
        if metric.name not in _KNOWN_TO_THE_PROCESS and metric.data.data_points:
            yield metric


def _name_of(metric: Metric) -> str:
    total = "_total" if _is_counter(metric) else ""
    return metric.name.replace(".", "_") + _UNITS.get(metric.unit or "", "") + total


def _is_counter(metric: Metric) -> bool:
    return isinstance(metric.data, Sum) and metric.data.is_monotonic


def _family(name: str, members: Sequence[tuple[Mapping[str, str], Metric]]) -> Iterator[str]:
    """Write one metric: what it is, and its value for each service."""
    _, first = members[0]
    yield f"# HELP {name} {_escaped(first.description or '')}\n"
    yield f"# TYPE {name} {'counter' if _is_counter(first) else 'gauge'}\n"
    for labels, metric in members:
        for point in metric.data.data_points:
            if isinstance(point, NumberDataPoint):
                own = {key.replace(".", "_"): str(value) for key, value in (point.attributes or {}).items()}
                written = ",".join(f'{key}="{_quoted(value)}"' for key, value in {**labels, **own}.items())
                yield f"{name}{{{written}}} {point.value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"').encode("utf-8", "replace").decode()
