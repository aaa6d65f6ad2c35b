"""The settings in force: each value, checked, with its source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from otel_audit.settings import privacy, proof, table
from otel_audit.settings.otlp import ENDPOINT, OtlpSettings, is_otlp_configured, read_otlp
from otel_audit.settings.privacy import ForwardedHeader
from otel_audit.settings.reader import Reader
from otel_audit.settings.service import SERVICE_NAME, UNKNOWN_SERVICE, default_directory, memory_directory
from otel_audit.settings.setting import Origin, Provenance
from otel_audit.settings.table import Durability, ExporterName, OnLoss

__all__ = ["DISTRO_VARIABLES", "IGNORED_VARIABLES", "Settings"]

_DELIVERED_DAYS = 30
_ONLY_COPY_DAYS = 400

_LOGS_EXPORTER: Final = "OTEL_LOGS_EXPORTER"
_NO_ENDPOINT: Final = Provenance(Origin.DEFAULT, f"otlp in {_LOGS_EXPORTER} has no endpoint")
_IN_MEMORY: Final = Provenance(Origin.DEFAULT, "durability is memory")
_QUEUE_SIZE: Final = "the queue is the journal, and the bound of memory mode is queue_bytes"
# The variables that opentelemetry-distro sets, unless the service does, under `opentelemetry-instrument`.
# Source: opentelemetry-distro 0.66b0, `OpenTelemetryDistro._configure`; those for traces and metrics are not read here.
DISTRO_VARIABLES: Mapping[str, str] = MappingProxyType({_LOGS_EXPORTER: "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
# Variables of OTel that a user may expect to work here, and why they do not.
IGNORED_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        _LOGS_EXPORTER: "its otlp counts only with an OTLP endpoint, since opentelemetry-distro sets it everywhere; "
        "without one the events stay in the journal",
        "OTEL_SDK_DISABLED": "an audit log must not be switched off by a variable; only true is reported",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "would drop the keys that an audit record must have",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "would cut hashes and ids; see text_chars",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "would drop the keys that an audit record must have",
        "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT": "would cut hashes and ids; see text_chars",
        "OTEL_BLRP_MAX_QUEUE_SIZE": _QUEUE_SIZE,
        "OTEL_AUDIT_QUEUE_SIZE": f"{_QUEUE_SIZE}; it will be unknown in the next version",
        table.QUEUE_SIZE.name: f"{_QUEUE_SIZE}; it will be unknown in the next version",
        **dict.fromkeys(
            (
                "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
                "OTEL_PYTHON_EXPORTER_OTLP_HTTP_LOGS_CREDENTIAL_PROVIDER",
                "OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER",
                "OTEL_PYTHON_EXPORTER_OTLP_GRPC_LOGS_CREDENTIAL_PROVIDER",
            ),
            "not built in this version; see headers and client_certificate",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked.

    Times are in seconds, sizes in bytes. `Settings.load` makes it, and docs/settings.md lists them.

    `otlp` is set if `export` names it, or if code or file give a setting of OTLP. `sources` has an entry for each
    setting that was read. `ignored` are the names of variables that are set but have no effect here.
    """

    service_name: str
    directory: Path
    durability: Durability
    export: tuple[ExporterName, ...]
    on_loss: OnLoss
    segment_bytes: int
    segment_age_s: float
    retention_days: int
    retention_bytes: int
    directory_bytes: int | None
    free_bytes: int | None
    queue_size: int
    queue_bytes: int
    batch_count: int
    batch_bytes: int
    batch_delay_s: float
    backoff_cap_s: float
    close_timeout_s: float
    text_chars: int
    attribute_count: int
    line_bytes: int
    file_mode: int
    jsonl_path: Path
    log_successful_reads: bool
    policy: Path | None
    access_log: Path | None
    trusted_proxies: tuple[str, ...]
    forwarded_header: ForwardedHeader
    redact_patterns: tuple[str, ...]
    redact_names: tuple[str, ...]
    keep_names: tuple[str, ...]
    keep_attributes: tuple[str, ...] | None
    client_info: privacy.ClientInfo
    pseudonym_keys: Path | None
    ledger: bool
    log_name: str | None
    head_seconds: float
    head_lines: int
    identity_key: Path | None
    sign_command: str | None
    otlp: OtlpSettings | None
    ignored: tuple[str, ...]
    sources: Mapping[str, Provenance] = field(compare=False, repr=False)

    @property
    def is_directory_in_memory(self) -> bool:
        """Return True if the directory was chosen because durability is memory. It must belong to this user alone."""
        return self.sources.get(table.DIRECTORY.name) == _IN_MEMORY

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str],
        overrides: Mapping[str, object] | None = None,
        *,
        own_exporters: bool = False,
    ) -> Settings:
        """Return the settings in force from `overrides`, `environ`, the file named by OTEL_AUDIT_CONFIG, and defaults.

        The process's own environment is not read, and nothing is created. `own_exporters` says that there are exporters
        besides those of the setting export.

        Raises:
            ConfigError: a value is not allowed, or a name is unknown. The message lists the valid ones.
        """
        reader = Reader.open(environ, overrides or {}, table.TABLE)
        service_name = reader.value(SERVICE_NAME) or UNKNOWN_SERVICE
        export = _exporters(reader)
        durability = reader.value(table.DURABILITY)
        if durability is Durability.MEMORY and not own_exporters:
            _refuse_memory_alone(reader, export)
        directory = _directory(reader, service_name, durability)
        return cls(
            service_name=service_name,
            directory=directory,
            durability=durability,
            export=export,
            on_loss=reader.value(table.ON_LOSS),
            segment_bytes=reader.value(table.SEGMENT_BYTES),
            segment_age_s=reader.value(table.SEGMENT_AGE_S),
            retention_days=_retention_days(reader, export),
            retention_bytes=reader.value(table.RETENTION_BYTES),
            directory_bytes=reader.value(table.DIRECTORY_BYTES),
            free_bytes=reader.value(table.FREE_BYTES),
            queue_size=reader.value(table.QUEUE_SIZE),
            queue_bytes=reader.value(table.QUEUE_BYTES),
            batch_count=reader.value(table.BATCH_COUNT),
            batch_bytes=reader.value(table.BATCH_BYTES),
            batch_delay_s=reader.value(table.BATCH_DELAY_S),
            backoff_cap_s=reader.value(table.BACKOFF_CAP_S),
            close_timeout_s=reader.value(table.CLOSE_TIMEOUT_S),
            text_chars=reader.value(table.TEXT_CHARS),
            attribute_count=reader.value(table.ATTRIBUTE_COUNT),
            line_bytes=reader.value(table.LINE_BYTES),
            file_mode=reader.value(table.FILE_MODE),
            jsonl_path=reader.value(table.JSONL_PATH) or _jsonl_path(reader, service_name, directory, export),
            log_successful_reads=reader.value(table.LOG_SUCCESSFUL_READS),
            policy=reader.value(table.POLICY),
            access_log=reader.value(table.ACCESS_LOG),
            trusted_proxies=reader.value(table.TRUSTED_PROXIES),
            forwarded_header=reader.value(table.FORWARDED_HEADER),
            redact_patterns=reader.value(privacy.REDACT_PATTERNS),
            redact_names=reader.value(privacy.REDACT_NAMES),
            keep_names=reader.value(privacy.KEEP_NAMES),
            keep_attributes=reader.value(privacy.KEEP_ATTRIBUTES),
            client_info=reader.value(privacy.CLIENT_INFO),
            pseudonym_keys=reader.value(privacy.PSEUDONYM_KEYS),
            ledger=reader.value(proof.LEDGER),
            log_name=reader.value(proof.LOG_NAME),
            head_seconds=reader.value(proof.HEAD_SECONDS),
            head_lines=reader.value(proof.HEAD_LINES),
            identity_key=reader.value(proof.IDENTITY_KEY),
            sign_command=_sign_command(reader),
            otlp=_otlp(reader, export),
            ignored=_ignored(reader),
            sources=MappingProxyType(reader.sources),
        )


def _exporters(reader: Reader) -> tuple[ExporterName, ...]:
    in_code = reader.is_given(ENDPOINT, Origin.CODE)
    is_own = reader.is_given(table.EXPORT, Origin.CODE, Origin.FILE) or reader.environ.get("OTEL_AUDIT_EXPORT")
    if in_code and not is_own:
        # An endpoint in the code is intended, whatever the SDK's own exporters are.
        reader.sources[table.EXPORT.name] = Provenance(Origin.DEFAULT, "code sets an endpoint")
        return (ExporterName.OTLP,)
    if (given := reader.value(table.EXPORT)) is not None:
        is_of_otel = reader.sources[table.EXPORT.name].where == _LOGS_EXPORTER
        if not is_of_otel or ExporterName.OTLP not in given or reader.is_given(ENDPOINT, *Origin):
            return given
        reader.sources[table.EXPORT.name] = _NO_ENDPOINT
        return tuple(name for name in given if name is not ExporterName.OTLP) or (ExporterName.NONE,)
    if reader.is_given(ENDPOINT, Origin.ENVIRONMENT, Origin.FILE):
        reader.sources[table.EXPORT.name] = Provenance(Origin.DEFAULT, "an OTLP endpoint is set")
        return (ExporterName.OTLP,)
    return (ExporterName.NONE,)


def _sign_command(reader: Reader) -> str | None:
    command = reader.value(proof.SIGN_COMMAND)
    if command is not None and reader.value(proof.IDENTITY_KEY) is None:
        expected = "identity_key beside it, a file with the public key that the command signs for"
        raise reader.error(proof.SIGN_COMMAND, command, expected, "set OTEL_AUDIT_IDENTITY_KEY")
    return command


def _retention_days(reader: Reader, export: tuple[ExporterName, ...]) -> int:
    given = reader.value(table.RETENTION_DAYS)
    if given is not None:
        return given
    return _ONLY_COPY_DAYS if export == (ExporterName.NONE,) else _DELIVERED_DAYS


def _otlp(reader: Reader, export: tuple[ExporterName, ...]) -> OtlpSettings | None:
    # Variables of OTLP may be meant for traces only, so they do not stop a service that does not export over OTLP.
    if ExporterName.OTLP in export or is_otlp_configured(reader, Origin.CODE, Origin.FILE):
        return read_otlp(reader)
    return None


def _directory(reader: Reader, service_name: str, durability: Durability) -> Path:
    if (given := reader.value(table.DIRECTORY)) is not None:
        return given
    if durability is not Durability.MEMORY:
        return default_directory(reader.environ, service_name, os.geteuid())
    reader.sources[table.DIRECTORY.name] = _IN_MEMORY
    return memory_directory(service_name, os.geteuid())


def _jsonl_path(reader: Reader, service_name: str, directory: Path, export: tuple[ExporterName, ...]) -> Path:
    """Return the path beside the journal. In memory there is none, since a growing file would fill it."""
    if reader.sources[table.DIRECTORY.name] == _IN_MEMORY and ExporterName.JSONL in export:
        directory = default_directory(reader.environ, service_name, os.geteuid())
    return directory / "export.jsonl"


def _refuse_memory_alone(reader: Reader, export: tuple[ExporterName, ...]) -> None:
    if export in ((ExporterName.NONE,), (ExporterName.SHIP,)):
        expected = "an exporter beside durability=memory, where nothing else would ever have the events"
        remedy = "set OTEL_EXPORTER_OTLP_ENDPOINT, or OTEL_AUDIT_EXPORT to otlp, console or jsonl; or durability to os"
        raise reader.error(table.EXPORT, ",".join(export), expected, remedy)


def _ignored(reader: Reader) -> tuple[str, ...]:
    return tuple(name for name in IGNORED_VARIABLES if _is_ignored(name, reader))


def _is_ignored(name: str, reader: Reader) -> bool:
    value = reader.environ.get(name, "")
    match name:
        case "OTEL_LOGS_EXPORTER":
            return reader.sources[table.EXPORT.name] == _NO_ENDPOINT
        case table.QUEUE_SIZE.name:
            return reader.is_given(table.QUEUE_SIZE, Origin.CODE, Origin.FILE)
        case "OTEL_SDK_DISABLED":
            return value.strip().lower() == "true"
    return bool(value)
