"""Which machine and which boot a stream was written on.

A lock says nothing about a writer on another machine that shares the volume, so a stream is adopted only on the host
that wrote it.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["boot_id", "host_id", "is_of_this_host"]


@cache
def host_id() -> str:
    """32 hex digits that stay the same on this machine.

    A digest, since the machine id itself is not to be shown outside. Source: machine-id(5), systemd.
    """
    known = _first_line("/etc/machine-id") or _first_line("/var/lib/dbus/machine-id") or socket.gethostname()
    return hashlib.sha256(b"otel-audit\0" + known.encode()).hexdigest()[:32]


@cache
def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none. Source: random(4), Linux."""
    return _first_line("/proc/sys/kernel/random/boot_id")


def is_of_this_host(header: Mapping[str, Any]) -> bool:
    """True when the stream with this header was written here; also when the header, being damaged, does not say."""
    return bool(header.get("host_id", host_id()) == host_id())


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0].strip()
    except OSError:
        return ""
