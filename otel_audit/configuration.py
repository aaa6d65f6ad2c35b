"""Build a logger that works from settings: `configure`, and the factory that Feast has."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.environment_variables import OTEL_EXPERIMENTAL_RESOURCE_DETECTORS, OTEL_RESOURCE_ATTRIBUTES
from opentelemetry.sdk.resources import Resource

from otel_audit.delivery.outcomes import Exporter
from otel_audit.errors import ConfigError
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.policy import read_policy
from otel_audit.redaction.caps import Caps
from otel_audit.redaction.redactor import Redactor, Rules
from otel_audit.settings import Settings
from otel_audit.settings.settings import IGNORED_VARIABLES
from otel_audit.sinks import AuditSink, FileAuditSink, LoggerAuditSink, StdoutAuditSink
from otel_audit.trail import Trail, close_at_end

if TYPE_CHECKING:
    from otel_audit.delivery.sdk_exporter import MadeOrMaker

__all__ = ["configure", "create_audit_logger_from_config", "open_trail"]

_logger = logging.getLogger(__name__)


def configure(
    *, resource: Resource | None = None, exporters: Sequence[MadeOrMaker] = (), **overrides: Any
) -> AuditLogger:
    """Return a logger with a journal and its delivery. `overrides` are settings by name; the environment has the rest.

    It is closed at the normal end of the process. `resource` replaces what the OTel SDK finds about this process.
    `exporters` are log record exporters of the SDK that take the place of the environment's; a class or function that
    makes one works after a fork too. A second call with the same configuration, as of a cell of a notebook that is run
    again, gives a logger with the journal and the delivery of the former one, as long as that is open.

    Raises:
        ConfigError: a setting or the policy is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """
    return _audit_logger(_read(exporters, overrides), exporters, resource)


def open_trail(exporters: Sequence[MadeOrMaker], resource: Resource | None, overrides: Mapping[str, Any]) -> Trail:
    """Return a journal and its delivery as `configure` makes them. They are closed at the end of the process.

    Raises:
        ConfigError: a setting is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """
    settings = _read(exporters, overrides)
    trail = _trail(_Configuration(settings, tuple(exporters), resource, of_loggers=False))
    if settings.policy is not None:
        trail.notices.say("policy", "OTEL_AUDIT_POLICY is set and has no effect on log records of the OTel API")
    if Rules.of(settings) != Rules():
        trail.notices.say("privacy", "settings of docs/privacy.md have no effect on log records of the OTel API")
    return trail


def create_audit_logger_from_config(audit_cfg: Any) -> AuditLogger | None:
    """Return a logger from Feast's `AuditLoggingConfig`, or from `Settings`; None if there is none, or it is disabled.

    Source: Feast 0.67 `audit_logger.create_audit_logger_from_config`.
    """
    if isinstance(audit_cfg, Settings):
        return _audit_logger(audit_cfg, (), None)
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


def _read(exporters: Sequence[MadeOrMaker], overrides: Mapping[str, Any]) -> Settings:
    if not exporters:
        return Settings.load(os.environ, overrides)
    if "export" in overrides:
        raise ConfigError(
            f"exporters: expected either exporters or the setting export, got both (export={overrides['export']!r}); "
            "leave one out"
        )
    return Settings.load(os.environ, {**overrides, "export": "none"}, own_exporters=True)


@dataclass(frozen=True, slots=True)
class _Configuration:
    """What makes a trail what it is: two that are equal may be one.

    `exporters` are those of the SDK that take the place of the settings'. `of_loggers`: audit loggers share it, which
    have a policy; else those who hand over log records of the OTel API.
    """

    settings: Settings
    exporters: tuple[MadeOrMaker, ...]
    resource: Resource | None
    of_loggers: bool
    policy_hash: str | None = None
    directory: str = ""  # where the settings' one is: the process may have changed its own
    found_by: tuple[str | None, ...] = ()  # what the SDK makes the resource from

    def here(self) -> _Configuration:
        """Return the same configuration, with what it depends on in this process now."""
        found_by = tuple(map(os.environ.get, (OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPERIMENTAL_RESOURCE_DETECTORS)))
        return replace(self, directory=os.path.abspath(self.settings.directory), found_by=found_by)


# Kept until they are closed, or a program that configures in a function would start threads at each call of it.
_open: list[tuple[_Configuration, Trail]] = []


def _trail(given: _Configuration) -> Trail:
    """Return the open trail of the same configuration, or a new one."""
    _open[:] = [(known, trail) for known, trail in _open if not trail.is_closed]
    wanted = given.here()
    for known, trail in _open:
        if known == wanted:
            trail.journal.prepare()
            return trail
    trail = _new_trail(given)
    _open.append((wanted, trail))
    return trail


def _new_trail(given: _Configuration) -> Trail:
    settings, notices = given.settings, Notices()
    trail = Trail(
        settings,
        resource=given.resource,
        exporters=_made(given.exporters, settings),
        notices=notices,
        policy_hash=given.policy_hash,
        is_foreign=not given.of_loggers,
    )
    for name in settings.ignored:
        notices.say(name, f"{name} is set and has no effect on audit events: {IGNORED_VARIABLES[name]}")
    if settings.service_name.startswith("unknown_service") and given.resource is None:
        notices.say("service", "no service name: set OTEL_SERVICE_NAME, so that the events say who recorded them")
    close_at_end(trail)
    return trail


def _made(exporters: Sequence[MadeOrMaker], settings: Settings) -> Sequence[Exporter] | None:
    if not exporters:
        return None
    # Not at the top: the SDK's log modules take 40 ms to load.
    from otel_audit.delivery.sdk_exporter import sdk_exporters

    return sdk_exporters(exporters, delay_s=settings.batch_delay_s)


def _audit_logger(settings: Settings, exporters: Sequence[MadeOrMaker], resource: Resource | None) -> AuditLogger:
    policy = read_policy(settings.policy) if settings.policy is not None else None  # a wrong one starts nothing
    rules = Rules.of(settings)  # nor does a wrong key
    policy_hash = policy.sha256 if policy is not None else None
    trail = _trail(_Configuration(settings, tuple(exporters), resource, of_loggers=True, policy_hash=policy_hash))
    caps = Caps(text_chars=settings.text_chars, attributes=settings.attribute_count, line_bytes=settings.line_bytes)
    return AuditLogger(
        trail,
        log_successful_reads=settings.log_successful_reads,
        policy=policy,
        redactor=Redactor(caps=caps, rules=rules),
        on_loss=settings.on_loss,
        notices=trail.notices,
    )
