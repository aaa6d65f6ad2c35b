"""The service's name as OTel's SDK finds it, and the directory that follows from it."""

from __future__ import annotations

import hashlib
import pwd
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from otel_audit.errors import ConfigError
from otel_audit.settings.setting import Origin, Source

__all__ = ["default_directory", "name_for_a_path", "service_name_of"]

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_PATH_CHARS = 100


def service_name_of(environ: Mapping[str, str]) -> tuple[str, Source]:
    """`OTEL_SERVICE_NAME`, else `service.name` in `OTEL_RESOURCE_ATTRIBUTES`, else `unknown_service`.

    Source: OTel specification, "Resource SDK", "Specifying resource information via an environment variable".
    """
    if name := environ.get("OTEL_SERVICE_NAME"):
        return name, Source(Origin.ENVIRONMENT, "OTEL_SERVICE_NAME")
    pairs = (item.partition("=") for item in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    names = [unquote(value.strip()) for key, _, value in pairs if key.strip() == "service.name"]
    if names and names[-1]:
        return names[-1], Source(Origin.ENVIRONMENT, "OTEL_RESOURCE_ATTRIBUTES")
    return "unknown_service", Source(Origin.DEFAULT)


def name_for_a_path(name: str) -> str:
    """The name as one part of a path. Two names never give the same part: a changed one carries a digest."""
    safe = _UNSAFE.sub("_", name)[:_PATH_CHARS].lstrip(".")
    if safe == name:
        return safe
    return f"{safe}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def default_directory(environ: Mapping[str, str], service_name: str, euid: int) -> Path:
    """Where this user's services keep state, one directory a service. Nothing is created.

    Source: XDG Base Directory Specification, `XDG_STATE_HOME` (a relative path in it is to be ignored);
    Filesystem Hierarchy Standard, /var/lib.

    Raises:
        ConfigError: the user has no home directory.
    """
    return _state_home(environ, euid) / "otel-audit" / name_for_a_path(service_name)


def _state_home(environ: Mapping[str, str], euid: int) -> Path:
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():
        return state_home
    if euid == 0:
        return Path("/var/lib")
    return _home(environ, euid) / ".local" / "state"


def _home(environ: Mapping[str, str], euid: int) -> Path:
    home = Path(environ.get("HOME", ""))
    if home.is_absolute():
        return home
    try:
        return Path(pwd.getpwuid(euid).pw_dir)
    except KeyError:
        raise ConfigError(
            f"OTEL_AUDIT_DIR: expected a directory for the journal, got none (default): user {euid} has no home "
            "directory to choose one in; set OTEL_AUDIT_DIR to a directory on a volume that outlives the process"
        ) from None
