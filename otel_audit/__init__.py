"""Audit logging for Python services on OpenTelemetry. The public names, nothing else.

The first use of a name loads the module that defines it, so `import otel_audit` alone costs a service, a test or
`otel-audit --help` next to nothing.

To follow an event, read `logger`, `recorder` and `fast_line` (the caller's values become one line), `policy` and
`redaction` (which parts of it are kept), `trail` and `journal` (the line reaches the disk), `delivery` and `records`
(it is sent).

PYTEST_DONT_REWRITE: `testing` is a pytest plugin. Without this marker, pytest warns that it cannot rewrite the
assertions of a package imported before it, as under `opentelemetry-instrument pytest`. The package has no assertions.
"""

import typing as _typing

if _typing.TYPE_CHECKING:
    from otel_audit._version import __version__
    from otel_audit.configuration import configure, create_audit_logger_from_config
    from otel_audit.delivery.processor import FlushReport
    from otel_audit.errors import (
        AuditError,
        AuditUnavailable,
        ConfigError,
        JournalFull,
        JournalUnreadable,
        JournalUnwritable,
    )
    from otel_audit.event import (
        AuditAction,
        AuditEvent,
        AuditPrincipal,
        AuditResource,
        AuditSource,
    )
    from otel_audit.event_schema import Outcome, PrincipalKind
    from otel_audit.integrations.asgi.middleware import AuditMiddleware
    from otel_audit.integrations.otel_logs import (
        AuditConsoleLogExporter,
        AuditJsonlLogExporter,
        AuditLogExporter,
        AuditLogRecordProcessor,
    )
    from otel_audit.journal.journal import Receipt
    from otel_audit.logger import AuditLogger, mcp_audit_request_id
    from otel_audit.operation import Operation
    from otel_audit.policy import Policy, read_policy
    from otel_audit.settings import Settings
    from otel_audit.sinks import AuditSink, FileAuditSink, LoggerAuditSink, StdoutAuditSink
    from otel_audit.trail import Stats, Trail

__all__ = [
    "AuditAction",
    "AuditConsoleLogExporter",
    "AuditError",
    "AuditEvent",
    "AuditJsonlLogExporter",
    "AuditLogExporter",
    "AuditLogRecordProcessor",
    "AuditLogger",
    "AuditMiddleware",
    "AuditPrincipal",
    "AuditResource",
    "AuditSink",
    "AuditSource",
    "AuditUnavailable",
    "ConfigError",
    "FileAuditSink",
    "FlushReport",
    "JournalFull",
    "JournalUnreadable",
    "JournalUnwritable",
    "LoggerAuditSink",
    "Operation",
    "Outcome",
    "Policy",
    "PrincipalKind",
    "Receipt",
    "Settings",
    "Stats",
    "StdoutAuditSink",
    "Trail",
    "__version__",
    "configure",
    "create_audit_logger_from_config",
    "mcp_audit_request_id",
    "read_policy",
]

# The module that defines each name. A test checks that this table agrees with the imports above.
_HOME = {
    "AuditAction": "event",
    "AuditConsoleLogExporter": "integrations.otel_logs",
    "AuditError": "errors",
    "AuditEvent": "event",
    "AuditJsonlLogExporter": "integrations.otel_logs",
    "AuditLogExporter": "integrations.otel_logs",
    "AuditLogRecordProcessor": "integrations.otel_logs",
    "AuditLogger": "logger",
    "AuditMiddleware": "integrations.asgi.middleware",
    "AuditPrincipal": "event",
    "AuditResource": "event",
    "AuditSink": "sinks",
    "AuditSource": "event",
    "AuditUnavailable": "errors",
    "ConfigError": "errors",
    "FileAuditSink": "sinks",
    "FlushReport": "delivery.processor",
    "JournalFull": "errors",
    "JournalUnreadable": "errors",
    "JournalUnwritable": "errors",
    "LoggerAuditSink": "sinks",
    "Operation": "operation",
    "Outcome": "event_schema",
    "Policy": "policy",
    "PrincipalKind": "event_schema",
    "Receipt": "journal.journal",
    "Settings": "settings",
    "Stats": "trail",
    "StdoutAuditSink": "sinks",
    "Trail": "trail",
    "__version__": "_version",
    "configure": "configuration",
    "create_audit_logger_from_config": "configuration",
    "mcp_audit_request_id": "logger",
    "read_policy": "policy",
}

if not _typing.TYPE_CHECKING:  # seeing `__getattr__`, a type checker would accept any name

    def __getattr__(name: str) -> object:
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
