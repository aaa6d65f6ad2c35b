"""An example of each setting, and how tests give them, read them, and have them refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from otel_audit.errors import ConfigError
from otel_audit.settings import (
    ClientInfo,
    Compression,
    Durability,
    ExporterName,
    ForwardedHeader,
    OnLoss,
    OtlpProtocol,
    Setting,
    Settings,
)
from otel_audit.settings.otlp import OTLP_TABLE
from otel_audit.settings.table import TABLE

__all__ = [
    "DEFAULT_DIRECTORY",
    "EACH_SETTING",
    "EXAMPLES",
    "HERE",
    "HOME",
    "Example",
    "companions",
    "config_file",
    "effective",
    "refusal",
]

HERE = str(Path(__file__).resolve())
HOME = {"HOME": "/home/alice", "XDG_STATE_HOME": "/home/alice/state"}
DEFAULT_DIRECTORY = Path("/home/alice/state/otel-audit/unknown_service")


@dataclass(frozen=True)
class Example:
    """One row: its default, a good value as text and as Python value, what both stand for, and a bad text."""

    default: object
    text: str
    code: object
    value: object
    bad: str


EXAMPLES = {
    "service_name": Example("unknown_service", "shop", "shop", "shop", " "),
    "directory": Example(DEFAULT_DIRECTORY, "/srv/audit", Path("/srv/audit"), Path("/srv/audit"), "~/audit"),
    "durability": Example(Durability.OS, "fsync", Durability.FSYNC, Durability.FSYNC, "disk"),
    "export": Example(
        (ExporterName.NONE,),
        "console, jsonl",
        [ExporterName.CONSOLE, "jsonl"],
        (ExporterName.CONSOLE, ExporterName.JSONL),
        "none,jsonl",
    ),
    "on_loss": Example(OnLoss.OPEN, "CLOSED", OnLoss.CLOSED, OnLoss.CLOSED, "ajar"),
    "segment_bytes": Example(64 * 1024**2, "1 MiB", 1024**2, 1024**2, "4095"),
    "segment_age_s": Example(3600.0, "60", 60, 60.0, "0"),
    "retention_days": Example(400, "7", 7, 7, "-1"),
    "retention_bytes": Example(0, "2 GiB", 2 * 1024**3, 2 * 1024**3, "some"),
    "directory_bytes": Example(None, "2 GiB", 2 * 1024**3, 2 * 1024**3, "1 KiB"),
    "free_bytes": Example(None, "0", 0, 0, "-1"),
    "queue_size": Example(2048, "100", 100, 100, "0"),
    "queue_bytes": Example(32 * 1024**2, "1 MiB", 1024**2, 1024**2, "1 KiB"),
    "batch_count": Example(2048, "100", 100, 100, "10001"),
    "batch_bytes": Example(3 * 1024**2, "1048576", 1024**2, 1024**2, "21 MiB"),
    "batch_delay_s": Example(1.0, "0.25", 0.25, 0.25, "nan"),
    "backoff_cap_s": Example(60.0, "5", 5, 5.0, "soon"),
    "close_timeout_s": Example(5.0, "0", 0, 0.0, "-1"),
    "text_chars": Example(2048, "1000", 1000, 1000, "1e3"),
    "attribute_count": Example(32, "1", 1, 1, "33"),
    "line_bytes": Example(65_536, "32kib", 32_768, 32_768, "256 KiB"),
    "file_mode": Example(0o600, "0660", 0o660, 0o660, "0606"),
    "jsonl_path": Example(
        DEFAULT_DIRECTORY / "export.jsonl", "/srv/e.jsonl", "/srv/e.jsonl", Path("/srv/e.jsonl"), " "
    ),
    "log_successful_reads": Example(True, "no", False, False, "perhaps"),
    "policy": Example(None, "/etc/p.yaml", "/etc/p.yaml", Path("/etc/p.yaml"), "~/p.yaml"),
    "access_log": Example(None, "/srv/access", "/srv/access", Path("/srv/access"), "~/access"),
    "trusted_proxies": Example(
        (), "10.0.0.0/8, ::1,unix", ["10.0.0.0/8", "::1", "unix"], ("10.0.0.0/8", "::1/128", "unix"), "10.0.0.0/8,*"
    ),
    "forwarded_header": Example(
        ForwardedHeader.X_FORWARDED_FOR, "Forwarded", ForwardedHeader.FORWARDED, ForwardedHeader.FORWARDED, "via"
    ),
    "redact_patterns": Example((), "EMP-[0-9]{2,6}\n a,b ", ["EMP-[0-9]{2,6}", "a,b"], ("EMP-[0-9]{2,6}", "a,b"), "a["),
    "redact_names": Example(
        (), "badge, employee_number", ["badge", "employee_number"], ("badge", "employee_number"), ","
    ),
    "keep_names": Example((), "session_id", ["session_id"], ("session_id",), "a,,b"),
    "keep_attributes": Example(None, "rows, http.*", ("rows", "http.*"), ("rows", "http.*"), ",rows"),
    "client_info": Example(ClientInfo.KEEP, "Truncate", ClientInfo.TRUNCATE, ClientInfo.TRUNCATE, "hash"),
    "pseudonym_keys": Example(None, HERE, HERE, Path(HERE), "~/keys"),
    "ledger": Example(True, "no", False, False, "perhaps"),
    "log_name": Example(None, "example.org/audit", "example.org/audit", "example.org/audit", "audit log"),
    "head_seconds": Example(300.0, "60", 60, 60.0, "0"),
    "head_lines": Example(10_000, "500", 500, 500, "0"),
    "identity_key": Example(None, HERE, HERE, Path(HERE), "~/identity.pem"),
    "sign_command": Example(None, "sign --key 7", "sign --key 7", "sign --key 7", "sign 'a"),
    "endpoint": Example(
        "http://localhost:4317", "https://c.example:4317", "https://c.example:4317", "https://c.example:4317", "c d"
    ),
    "protocol": Example(OtlpProtocol.GRPC, "grpc", OtlpProtocol.GRPC, OtlpProtocol.GRPC, "http/json"),
    "headers": Example((), "X-Key=a%20b", {"X-Key": "a b"}, (("x-key", "a b"),), "authorization: Bearer s3cret"),
    "timeout_s": Example(10.0, "2.5", 2.5, 2.5, "10s"),
    "compression": Example(Compression.NONE, "gzip", Compression.GZIP, Compression.GZIP, "zstd"),
    "certificate": Example(None, HERE, HERE, HERE, "/no/such/file"),
    "client_key": Example(None, HERE, Path(HERE), HERE, "/no/such/file"),
    "client_certificate": Example(None, HERE, HERE, HERE, "/no/such/file"),
    "insecure": Example(True, "false", False, False, "perhaps"),
}
EACH_SETTING = pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)


def companions(setting: Setting[object]) -> dict[str, str]:
    """What must be set besides, so that the setting is read at all."""
    if setting.name == "sign_command":
        return {"OTEL_AUDIT_IDENTITY_KEY": HERE}
    if setting not in OTLP_TABLE:
        return {}
    more = {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": HERE} if setting.name == "client_key" else {}
    return {"OTEL_AUDIT_EXPORT": "otlp", **more}


def effective(settings: Settings, setting: Setting[object]) -> object:
    value: object = getattr(settings.otlp if setting in OTLP_TABLE else settings, setting.name)
    return value


def config_file(directory: Path, text: str) -> dict[str, str]:
    path = directory / "audit.yaml"
    path.write_text(text, encoding="utf-8")
    return {"OTEL_AUDIT_CONFIG": str(path)}


def refusal(environ: Mapping[str, str], **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.load({**HOME, **environ}, overrides)
    return str(caught.value)
