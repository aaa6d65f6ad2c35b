"""A trail for one test: a real journal in a directory of its own, with the same times and ids in each run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import uuid_utils

from otel_audit import configuration, ids
from otel_audit.journal import line, writer
from otel_audit.logger import AuditLogger

__all__ = ["NOW_NS", "NumberedIds", "trail_for_test"]

NOW_NS: Final = 1_767_225_600_000_000_000
"""When every event of a test is recorded: 2026-01-01T00:00:00Z, in nanoseconds since 1970."""

# What may not be left to the machine that the tests run on. All else is what the application sets.
_ENVIRONMENT: Final = {
    "OTEL_AUDIT_EXPORT": "none",
    "OTEL_AUDIT_DURABILITY": "os",
    "OTEL_AUDIT_LEDGER": "false",
}
_VARIANT: Final = 0b10 << 62  # RFC 9562, section 4.1


class NumberedIds:
    """Makes UUIDs whose last digits count up from 1: `event_id` version 7, `request_id` version 4.

    A forked child makes real ones. With a copy of the numbers it would make those of its parent once more.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._numbers = {7: count(1), 4: count(1)}

    def event_id(self) -> uuid_utils.UUID:
        """Return the next UUIDv7. Its time is that of the clock."""
        return self._next(7, NOW_NS // 10**6 << 80) if os.getpid() == self._pid else uuid_utils.uuid7()

    def request_id(self) -> uuid_utils.UUID:
        """Return the next UUIDv4."""
        return self._next(4, 0) if os.getpid() == self._pid else uuid_utils.uuid4()

    def _next(self, version: int, time: int) -> uuid_utils.UUID:
        return uuid_utils.UUID(int=time | version << 76 | _VARIANT | next(self._numbers[version]))


@contextmanager
def trail_for_test(directory: Path, patch: pytest.MonkeyPatch) -> Iterator[AuditLogger]:
    """Give a logger with a trail in the directory; close the trail at the end.

    What `configure()` makes meanwhile, by the environment alone, shares trail, clock and ids.
    """
    for name, value in _ENVIRONMENT.items():
        patch.setenv(name, value)
    patch.setenv("OTEL_AUDIT_DIR", str(directory))
    patch.setenv("OTEL_SERVICE_NAME", os.environ.get("OTEL_SERVICE_NAME", "tests"))
    # Streams keep real ids, so that no two can be taken for one, and do not shift the numbers of the events.
    real = SimpleNamespace(new_id=ids.new_id)
    patch.setattr(line, "ids", real)
    patch.setattr(writer, "ids", real)
    numbered = NumberedIds()
    patch.setattr(ids, "new_id", numbered.event_id)
    patch.setattr(ids, "new_random_id", numbered.request_id)
    made: list[AuditLogger] = []

    def logger(*arguments: Any, **options: Any) -> AuditLogger:
        made.append(AuditLogger(*arguments, clock=lambda: NOW_NS, **options))
        return made[-1]

    patch.setattr(configuration, "AuditLogger", logger)
    try:
        yield configuration.configure()
    finally:
        for audit in made:  # an application rarely closes its own, and the last one closes the trail
            audit.close()
