"""Whether the settings say who records, and which variables say something that is not obeyed."""

from __future__ import annotations

from otel_audit.diagnosis.finding import Finding
from otel_audit.settings import Settings

__all__ = ["identity_findings"]


def identity_findings(settings: Settings) -> list[Finding]:
    """That the settings are valid, which they are once they are loaded, and whether the service has a name."""
    return [_settings(settings), _service_name(settings)]


def _settings(settings: Settings) -> Finding:
    if not settings.ignored:
        return Finding("settings", "all are valid")
    has = "has" if len(settings.ignored) == 1 else "have"
    # Not wrong: the rest of the service may want them.
    return Finding("settings", f"all are valid; {', '.join(settings.ignored)} {has} no effect on audit events")


def _service_name(settings: Settings) -> Finding:
    if settings.service_name.startswith("unknown_service"):
        return Finding("service name", "none is set: events do not say who recorded them", "set OTEL_SERVICE_NAME")
    return Finding("service name", settings.service_name)
