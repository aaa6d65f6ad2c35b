"""Audit logging for Python services on OpenTelemetry. The public names, nothing else."""

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
from otel_audit.journal.journal import Receipt
from otel_audit.logger import AuditLogger, mcp_audit_request_id
from otel_audit.operation import Operation
from otel_audit.policy import Policy, read_policy
from otel_audit.settings import Settings
from otel_audit.sinks import AuditSink, FileAuditSink, LoggerAuditSink, StdoutAuditSink
from otel_audit.trail import Stats, Trail

__all__ = [
    "AuditAction",
    "AuditError",
    "AuditEvent",
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
