"""Ports for servers that are stopped and started again on the same address."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

__all__ = ["LOOPBACK", "free_port"]

LOOPBACK = "127.0.0.1"

# Below the range from which systems take the ports of outgoing connections. A port that is free between the stop and
# the start of a server must not be given to a client in the meantime.
_FIRST, _LAST = 20_000, 32_700
_ATTEMPTS = 200

# Not seeded by the test run: two runs on one machine must not try the same ports in the same order.
_random = random.SystemRandom()

# Handed out before by this process; a stopped server has not given up its port.
_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port of the loopback interface on which nothing listens.

    No test process of this user is given the same one until this process has ended.
    """
    for _ in range(_ATTEMPTS):
        port = _random.randint(_FIRST, _LAST)
        if port not in _given and _take(port) and _is_free(port):
            _given.add(port)
            return port
    raise RuntimeError(f"expected a free port from {_FIRST} to {_LAST} on {LOOPBACK}, got none in {_ATTEMPTS} attempts")


# One byte of it is locked for each port: by one process, and no longer than it lives. It stays open, since closing it
# would give up all the locks.
_taken = os.open(
    Path(tempfile.gettempdir()) / f"otel-audit-test-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
)


def _take(port: int) -> bool:
    try:
        fcntl.lockf(_taken, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A server binds in spite of connections of its predecessor that still linger; so must the probe.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
