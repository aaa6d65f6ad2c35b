"""Check the settings: whether they name the service, endpoint and protocol match, and every variable takes effect.

Nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit

from otel_audit.diagnosis.findings import Finding
from otel_audit.errors import ConfigError
from otel_audit.settings import ExporterName, Origin, OtlpProtocol, OtlpSettings, Settings
from otel_audit.settings.settings import DISTRO_VARIABLES

__all__ = ["destination_findings", "identity_findings", "instrument_findings"]


# Source: OTLP specification: 4317 is the port of OTLP/gRPC, 4318 that of OTLP/HTTP.
_PORTS: Final = {OtlpProtocol.GRPC: 4317, OtlpProtocol.HTTP_PROTOBUF: 4318}


def destination_findings(settings: Settings) -> list[Finding]:
    """Check that a destination for events is configured, and that protocol and port match."""
    if ExporterName.OTLP in settings.export and settings.otlp is not None:
        return [_endpoint(settings, settings.otlp), _protocol(settings.otlp)]
    return [_without_otlp(settings)]


def instrument_findings(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Check that the service exports in the same way when `opentelemetry-instrument` starts it.

    `settings` are those of `environ`. Empty if opentelemetry-distro, which changes variables, is not installed.
    """
    if find_spec("opentelemetry.distro") is None:
        return []
    try:
        started = Settings.load({**DISTRO_VARIABLES, **environ}, {"directory": str(settings.directory)})
    except ConfigError as error:
        return [_otherwise(f"the service would not start: {error}")]
    if (started.export, started.otlp) != (settings.export, settings.otlp):
        return [_otherwise(f"the protocol would be {DISTRO_VARIABLES['OTEL_EXPORTER_OTLP_PROTOCOL']}")]
    return [Finding("instrument", f"under opentelemetry-instrument export is {', '.join(started.export)} too")]


def _otherwise(difference: str) -> Finding:
    """Return the finding. Only a protocol in the file can lose against a variable of the distro."""
    return Finding(
        "instrument",
        f"under opentelemetry-instrument {difference}: opentelemetry-distro sets OTEL_EXPORTER_OTLP_PROTOCOL, which "
        "wins over the file",
        "set OTEL_EXPORTER_OTLP_PROTOCOL in the environment of the service",
    )


def _without_otlp(settings: Settings) -> Finding:
    export, source = settings.export, settings.sources["export"]
    if export == (ExporterName.SHIP,):
        says = "another process delivers, `otel-audit ship`: run this check with its settings too"
        return Finding("endpoint", says)
    if export != (ExporterName.NONE,):
        return Finding("endpoint", f"none is needed: events go to {', '.join(export)}")
    if source.origin is Origin.DEFAULT:
        return Finding(
            "endpoint",
            "nothing says where events go: they stay in the journal",
            "set OTEL_EXPORTER_OTLP_ENDPOINT to that of a collector, or OTEL_AUDIT_EXPORT=none if that is intended",
        )
    return Finding("endpoint", f"none is needed: events stay in the journal, by {source}")


def _endpoint(settings: Settings, otlp: OtlpSettings) -> Finding:
    return Finding("endpoint", f"{otlp.shown_endpoint} ({settings.sources['endpoint']}), {_security(otlp)}")


def _security(otlp: OtlpSettings) -> str:
    names = ", ".join(name for name, _ in otlp.headers)
    headers = f", headers: {names}" if names else ", no headers"
    if otlp.insecure or otlp.endpoint.startswith("http:"):
        return f"without TLS{headers}"
    client = " and a client certificate" if otlp.client_certificate else ""
    return f"TLS with {otlp.certificate or 'the CAs of the system'}{client}{headers}"


def _protocol(otlp: OtlpSettings) -> Finding:
    port = _port(otlp)
    says = otlp.protocol.value if port is None else f"{otlp.protocol.value} on port {port}"
    for other, its_port in _PORTS.items():
        if port == its_port and other is not otlp.protocol:
            return Finding(
                "protocol",
                f"{says}, which is the port of {other.value}",
                f"set OTEL_EXPORTER_OTLP_PROTOCOL={other.value}, or port {_PORTS[otlp.protocol]} in the endpoint",
            )
    return Finding("protocol", says)


def _port(otlp: OtlpSettings) -> int | None:
    parts = urlsplit(otlp.endpoint)
    if parts.scheme not in ("http", "https"):
        return None  # gRPC has kinds of address of its own
    return parts.port or (443 if parts.scheme == "https" else 80)


def identity_findings(settings: Settings) -> list[Finding]:
    """Check that the service has a name. The settings are valid, or they would not have been loaded."""
    return [_settings(settings), _service_name(settings)]


def _settings(settings: Settings) -> Finding:
    if not settings.ignored:
        return Finding("settings", "all are valid")
    has = "has" if len(settings.ignored) == 1 else "have"
    # Not an error, since the rest of the service may need them.
    return Finding("settings", f"all are valid; {', '.join(settings.ignored)} {has} no effect on audit events")


def _service_name(settings: Settings) -> Finding:
    if settings.service_name.startswith("unknown_service"):
        return Finding("service name", "none is set: events do not say who recorded them", "set OTEL_SERVICE_NAME")
    return Finding("service name", settings.service_name)
