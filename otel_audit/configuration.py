"""From settings to a logger that works: `configure`, and the factory that Feast has."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource

from otel_audit.delivery.batch import Exporter
from otel_audit.errors import ConfigError
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.policy import Policy, read_policy
from otel_audit.process_end import close_at_end
from otel_audit.redaction.caps import Caps
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.rules import Rules
from otel_audit.settings import Settings
from otel_audit.settings.settings import IGNORED_VARIABLES
from otel_audit.sinks import AuditSink, FileAuditSink, LoggerAuditSink, StdoutAuditSink
from otel_audit.trail import Trail

if TYPE_CHECKING:
    from otel_audit.delivery.sdk_exporter import MadeOrMaker

__all__ = ["configure", "create_audit_logger_from_config", "open_trail"]

_logger = logging.getLogger(__name__)


def configure(
    *, resource: Resource | None = None, exporters: Sequence[MadeOrMaker] = (), **overrides: Any
) -> AuditLogger:
    """A logger with a journal and its delivery, from the environment; `overrides` come first, by the setting's name.

    It is closed at the normal end of the process. `resource` replaces what the OTel SDK finds about this process.
    `exporters` are log record exporters of the SDK that take the place of the environment's; a class or function that
    makes one works after a fork too.

    Raises:
        ConfigError: a setting or the policy is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """
    return _audit_logger(*_read(exporters, overrides), resource)


def open_trail(exporters: Sequence[MadeOrMaker], resource: Resource | None, overrides: Mapping[str, Any]) -> Trail:
    """A journal and its delivery, from the environment, as `configure` makes it. Closed at the end of the process.

    Raises:
        ConfigError: a setting is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """
    settings, own_exporters = _read(exporters, overrides)
    trail = _trail(settings, own_exporters, resource, None)
    if settings.policy is not None:
        trail.notices.say("policy", "OTEL_AUDIT_POLICY is set and has no effect on log records of the OTel API")
    if Rules.of(settings) != Rules():
        trail.notices.say("privacy", "settings of docs/privacy.md have no effect on log records of the OTel API")
    return trail


def create_audit_logger_from_config(audit_cfg: Any) -> AuditLogger | None:
    """A logger from Feast's `AuditLoggingConfig`, or from `Settings`; None when there is none or it is not enabled.

    Source: Feast 0.67 `audit_logger.create_audit_logger_from_config`.
    """
    if isinstance(audit_cfg, Settings):
        return _audit_logger(audit_cfg, None, None)
    if audit_cfg is None or not getattr(audit_cfg, "enabled", False):
        return None
    return AuditLogger(_sink(audit_cfg), log_successful_reads=getattr(audit_cfg, "log_successful_reads", True))


def _sink(audit_cfg: Any) -> AuditSink:
    kind = getattr(audit_cfg, "sink", "stdout")
    match kind:
        case "file":
            return FileAuditSink(getattr(audit_cfg, "file_path", "feast_audit.log"))
        case "logger":
            return LoggerAuditSink(getattr(audit_cfg, "logger_name", "feast.audit"))
        case "stdout":
            return StdoutAuditSink()
    _logger.warning("Audit sink: expected stdout, file or logger, got %r; using stdout", kind)
    return StdoutAuditSink()


def _read(exporters: Sequence[MadeOrMaker], overrides: Mapping[str, Any]) -> tuple[Settings, Sequence[Exporter] | None]:
    """The settings, and the exporters that take the place of those that they name."""
    if not exporters:
        return Settings.load(os.environ, overrides), None
    if "export" in overrides:
        raise ConfigError(
            f"exporters: expected either exporters or the setting export, got both (export={overrides['export']!r}); "
            "leave one out"
        )
    settings = Settings.load(os.environ, {**overrides, "export": "none"}, own_exporters=True)
    # Not at the top: the SDK's log modules take 40 ms to load.
    from otel_audit.delivery.sdk_exporter import sdk_exporters

    return settings, sdk_exporters(exporters, delay_s=settings.batch_delay_s)


def _trail(
    settings: Settings, exporters: Sequence[Exporter] | None, resource: Resource | None, policy: Policy | None
) -> Trail:
    notices = Notices()
    policy_hash = policy.sha256 if policy is not None else None
    trail = Trail(settings, resource=resource, exporters=exporters, notices=notices, policy_hash=policy_hash)
    for name in settings.ignored:
        notices.say(name, f"{name} is set and has no effect on audit events: {IGNORED_VARIABLES[name]}")
    if settings.service_name.startswith("unknown_service") and resource is None:
        notices.say("service", "no service name: set OTEL_SERVICE_NAME, so that the events say who recorded them")
    close_at_end(trail)
    return trail


def _audit_logger(settings: Settings, exporters: Sequence[Exporter] | None, resource: Resource | None) -> AuditLogger:
    policy = read_policy(settings.policy) if settings.policy is not None else None  # a wrong one starts nothing
    rules = Rules.of(settings)  # nor does a wrong key
    trail = _trail(settings, exporters, resource, policy)
    caps = Caps(text_chars=settings.text_chars, attributes=settings.attribute_count, line_bytes=settings.line_bytes)
    return AuditLogger(
        trail,
        log_successful_reads=settings.log_successful_reads,
        policy=policy,
        redactor=Redactor(caps=caps, rules=rules),
        on_loss=settings.on_loss,
        notices=trail.notices,
    )
