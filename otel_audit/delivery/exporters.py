"""The exporters that the settings name."""

from __future__ import annotations

from otel_audit.delivery.batch import Exporter
from otel_audit.delivery.console import ConsoleExporter
from otel_audit.delivery.jsonl import JsonlExporter
from otel_audit.delivery.otlp import OtlpExporter
from otel_audit.errors import ConfigError
from otel_audit.settings import ExporterName, Settings

__all__ = ["exporters_of"]


def exporters_of(settings: Settings) -> list[Exporter]:
    """One for each destination; none where the journal is the destination, or another process delivers.

    Raises:
        ConfigError: one cannot be made.
    """
    return [exporter for name in settings.export if (exporter := _exporter(name, settings)) is not None]


def _exporter(name: ExporterName, settings: Settings) -> Exporter | None:
    match name:
        case ExporterName.OTLP:
            if settings.otlp is None:
                raise ConfigError("OTEL_EXPORTER_OTLP_ENDPOINT: expected an endpoint for the exporter otlp, got none")
            return OtlpExporter(settings.otlp, delay_s=settings.batch_delay_s, batch_bytes=settings.batch_bytes)
        case ExporterName.CONSOLE:
            return ConsoleExporter()
        case ExporterName.JSONL:
            return JsonlExporter(settings.jsonl_path, mode=settings.file_mode, delay_s=settings.batch_delay_s)
        case ExporterName.NONE | ExporterName.SHIP:
            return None
