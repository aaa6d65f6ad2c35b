"""Build a working logger from settings: `configure`, and Feast's factory function."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace
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
    """Return a logger that writes to a journal and delivers from it.

    `overrides` are settings by name; all others come from the environment. `resource` replaces the one that the OTel
    SDK detects. `exporters` are the SDK's log record exporters, used instead of those that the environment names. Pass
    a class or function that makes one if the process forks: an instance is of no use in the child.

    The logger closes when the process ends normally. If a second call has the same configuration, as when a notebook
    cell runs again, its logger shares the journal and the delivery of the first one while that is open.

    Raises:
        ConfigError: a setting or the policy is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """
    return _audit_logger(_read(exporters, overrides), exporters, resource)


def open_trail(exporters: Sequence[MadeOrMaker], resource: Resource | None, overrides: Mapping[str, Any]) -> Trail:
    """Return a journal and its delivery, made as in `configure`. Both close when the process ends.

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
    """Return a logger for Feast's `AuditLoggingConfig` or for `Settings`, or None if `audit_cfg` is None or disabled.

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


class _Configuration(msgspec.Struct, frozen=True):
    """Everything that distinguishes one trail from another. Callers with equal configurations share a trail.

    `exporters` are SDK exporters, used instead of those in the settings. `of_loggers` is True for the trail of audit
    loggers, which have a policy, and False for a trail of log records from the OTel API.
    """

    settings: Settings
    exporters: tuple[MadeOrMaker, ...]
    resource: Resource | None
    of_loggers: bool
    policy_hash: str | None = None
    directory: str = ""  # absolute: the process may change its working directory between two calls
    found_by: tuple[str | None, ...] = ()  # the variables that the SDK builds the resource from

    def here(self) -> _Configuration:
        """Return the same configuration with the process's current directory and environment filled in."""
        found_by = tuple(map(os.environ.get, (OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPERIMENTAL_RESOURCE_DETECTORS)))
        return replace(self, directory=os.path.abspath(self.settings.directory), found_by=found_by)


# Open trails are kept here. Otherwise a program that configures inside a function would start threads on every call.
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
    # Both before the trail: with an invalid policy or key, nothing is started.
    policy = read_policy(settings.policy) if settings.policy is not None else None
    rules = Rules.of(settings)
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
