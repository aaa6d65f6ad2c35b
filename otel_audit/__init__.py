"""Audit logging for Python services on OpenTelemetry. The public names, nothing else.

A name loads the module that defines it when it is first used: `import otel_audit` alone costs a service, a test or
`otel-audit --help` next to nothing.

To follow an event, read `logger`, `recorder` and `fast_line` (the caller's values become one line), `policy` and
`redaction` (what is kept of it), `trail` and `journal` (the line is on disk), `delivery` and `records` (it goes out).

PYTEST_DONT_REWRITE: `testing` is a plugin of pytest, which would warn of a package that was imported before it, as by
`opentelemetry-instrument pytest`, that its assertions cannot be rewritten. There are none.
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
        Outcome,
        PrincipalKind,
    )
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

# The module below the package that each name is loaded from; a test holds that it says the same as the imports above.
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
    "Outcome": "event",
    "Policy": "policy",
    "PrincipalKind": "event",
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

if not _typing.TYPE_CHECKING:  # a type checker would take `__getattr__` as a promise of any name

    def __getattr__(name: str) -> object:
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
