"""Where a command sends records to, and how it waits: from the settings and the options of the command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from otel_audit.cli.stop import Stop
from otel_audit.delivery.otlp import OtlpExporter
from otel_audit.replaying.sending import Patience
from otel_audit.replaying.source import Limits
from otel_audit.settings import OtlpSettings, Settings

__all__ = ["Destination"]


@dataclass(frozen=True, slots=True)
class Destination:
    """The OTLP endpoint of the settings, with an exporter to it."""

    settings: Settings
    otlp: OtlpSettings
    exporter: OtlpExporter
    patience: Patience

    @property
    def limits(self) -> Limits:
        """How much goes into one request."""
        return Limits(self.settings.batch_count, self.settings.batch_bytes)

    @classmethod
    @contextmanager
    def of_settings(cls, *, give_up_after_s: float) -> Iterator[Destination]:
        """The destination, as long as it is used. SIGTERM and Ctrl-C ask for an end meanwhile.

        Raises:
            ConfigError: a setting is wrong.
        """
        settings = Settings.load(os.environ, {"export": "otlp"})
        assert settings.otlp is not None  # it is read because export names it
        exporter = OtlpExporter(settings.otlp, delay_s=settings.batch_delay_s, batch_bytes=settings.batch_bytes)
        with Stop() as stop:
            patience = Patience(give_up_after_s, settings.backoff_cap_s, pause=stop.wait, stopped=stop)
            try:
                yield cls(settings, settings.otlp, exporter, patience)
            finally:
                exporter.close()
