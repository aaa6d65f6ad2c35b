"""The numbers as a reader of the application's meter provider sees them, and the trails that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint

from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.event import AuditEvent
from otel_audit.settings import Settings
from otel_audit.sinks import AuditSink
from otel_audit.trail import Trail
from tests.delivery.audited_server import AuditedServer, exporter_to

__all__ = ["ROOT", "Reader", "a_trail", "emit", "parts", "value_of"]

ROOT = Path(__file__).parents[2]


class Reader:
    """A meter provider of its own, and what is seen through it."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.metrics = AuditMetrics(SdkMeterProvider([self._reader], shutdown_on_exit=False))

    def collect(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "otel_audit"
        return {metric.name: metric for metric in scope.metrics}

    def values(self) -> dict[str, dict[str, float]]:
        """By name, and by the values of the attributes, in the order of their names."""
        return {name: dict(map(value_of, metric.data.data_points)) for name, metric in self.collect().items()}


def value_of(point: Any) -> tuple[str, float]:
    assert isinstance(point, NumberDataPoint | HistogramDataPoint)
    key = " ".join(str(value) for _, value in sorted((point.attributes or {}).items()))
    return key, point.count if isinstance(point, HistogramDataPoint) else point.value


def a_trail(directory: Path, reader: Reader, server: AuditedServer | None = None, **overrides: object) -> Trail:
    settings = Settings.load({}, {"directory": str(directory), "export": "none", "backoff_cap_s": 1, **overrides})
    exporters = None if server is None else [exporter_to(server)]
    return Trail(settings, exporters=exporters, metrics=reader.metrics)


def emit(sink: AuditSink, *names: str) -> None:
    for name in names:
        sink.emit(AuditEvent(event_type="test", event_id=name))


def parts(values: Mapping[str, Mapping[str, float]], exporter: str) -> tuple[float, float, float, float]:
    """Exported, pending, quarantined and dropped."""
    exported, pending, quarantined = (
        values[f"audit.{name}"][exporter] for name in ("records.exported", "queue.depth", "records.quarantined")
    )
    return exported, pending, quarantined, sum(values["audit.records.dropped"].values())
