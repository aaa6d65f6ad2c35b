"""Find the name of the service as OTel's SDK does, and derive the default directory from it."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import msgspec

from otel_audit.errors import ConfigError
from otel_audit.settings.setting import Mismatch, Setting, Variable

__all__ = ["SERVICE_NAME", "UNKNOWN_SERVICE", "default_directory", "memory_directory", "name_for_a_path"]

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_PATH_CHARS = 100
UNKNOWN_SERVICE: Final = "unknown_service"


class ServiceName(msgspec.Struct, frozen=True):
    """A name of a service."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a name"

    def parse(self, given: object) -> str:
        """See `Kind`."""
        if not isinstance(given, str) or not given.strip():
            raise Mismatch
        return given


class ServiceNameOfResource(msgspec.Struct, frozen=True):
    """The `service.name` among the attributes of a resource.

    Source: OTel specification, "Resource SDK", "Specifying resource information via an environment variable".
    """

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "attributes of a resource"

    def parse(self, given: object) -> str | None:
        """See `Kind`. None where none of them is the name of the service."""
        pairs = (item.partition("=") for item in str(given).split(","))
        names = [unquote(value.strip()) for key, _, value in pairs if key.strip() == "service.name"]
        return (names[-1] if names else "") or None


SERVICE_NAME: Final[Setting[str | None]] = Setting(
    name="service_name",
    variables=(Variable("OTEL_SERVICE_NAME"),),
    kind=ServiceName(),
    default=None,
    default_text="service.name in OTEL_RESOURCE_ATTRIBUTES, else unknown_service",
    doc="The name of the service. It is in the resource of each event, and in the default directory.",
    reason="what the service already tells OTel also holds here",
    fallbacks=(Variable("OTEL_RESOURCE_ATTRIBUTES", ServiceNameOfResource()),),
)


def name_for_a_path(name: str) -> str:
    """Return the name as one part of a path.

    Two names never give the same part, since a changed one carries a digest.
    """
    safe = _UNSAFE.sub("_", name)[:_PATH_CHARS].lstrip(".")
    if safe == name:
        return safe
    return f"{safe}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def default_directory(environ: Mapping[str, str], service_name: str, euid: int) -> Path:
    """Return the directory of this user's service. Nothing is created.

    Source: XDG Base Directory Specification, `XDG_STATE_HOME` (a relative path in it is to be ignored); Filesystem
    Hierarchy Standard, /var/lib.

    Raises:
        ConfigError: the user has no home directory.
    """
    return _state_home(environ, euid) / "otel-audit" / name_for_a_path(service_name)


def memory_directory(service_name: str, euid: int, mounts: Sequence[Path] | None = None) -> Path:
    """Return the directory of a service on the first file system in memory that this user can write.

    Nothing is created.

    `mounts` are the candidates: /dev/shm, which every container has even if its root is read-only, and /run/user. A
    directory of this name that belongs to another user, or that others may enter, is skipped.

    Source: Filesystem Hierarchy Standard, /dev/shm; XDG Base Directory Specification, `XDG_RUNTIME_DIR`.

    Raises:
        ConfigError: there is none.
    """
    refused = []
    for mount in mounts if mounts is not None else (Path("/dev/shm"), Path(f"/run/user/{euid}")):
        home = mount / f"otel-audit-{euid}"
        try:
            found = home.lstat()
        except FileNotFoundError:
            if os.access(mount, os.W_OK | os.X_OK):
                return home / name_for_a_path(service_name)
            refused.append(f"{mount} cannot be written")
        except OSError as error:
            refused.append(f"{home}: {error.strerror}")
        else:
            if stat.S_ISDIR(found.st_mode) and found.st_uid == euid and not stat.S_IMODE(found.st_mode) & 0o077:
                return home / name_for_a_path(service_name)
            refused.append(f"{home} is not a directory of user {euid} alone")
    raise ConfigError(
        f"OTEL_AUDIT_DURABILITY=memory: expected a file system in memory that user {euid} can write, got none: "
        f"{'; '.join(refused)}; mount one, as by docker run --tmpfs /run/audit:mode=0700,uid={euid} or an emptyDir of "
        "medium Memory, and set OTEL_AUDIT_DIR to it"
    )


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
