"""How the tests of the logger record events, and read back the lines that they left."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otel_audit.journal.journal import Receipt
from otel_audit.logger import AuditLogger
from otel_audit.settings import Settings
from otel_audit.trail import Trail

__all__ = ["a_trail", "event_of", "line_of_receipt", "recorder", "without_place"]

_PLACE = re.compile(rb'("event_id":"[0-9a-f-]{36}")|("seq":\d+)|("prev_hash":"[0-9a-f]{64}")')


def a_trail(directory: Path, **overrides: object) -> Trail:
    """A journal that is its own destination."""
    return Trail(Settings.load({}, {"directory": str(directory), "export": "none", **overrides}))


@contextmanager
def recorder(directory: Path, **options: Any) -> Iterator[AuditLogger]:
    """A logger with a journal, closed at the end."""
    logger = AuditLogger(a_trail(directory), **options)
    try:
        yield logger
    finally:
        logger.close()


def line_of_receipt(directory: Path, receipt: Receipt | None) -> bytes:
    """The line that a receipt speaks of."""
    assert receipt is not None
    assert receipt.durable
    wanted = b'"seq":%d' % (receipt.seq or 0)
    for path in sorted(directory.glob(f"{receipt.stream_id}.*.jsonl"), reverse=True):
        for line in reversed(path.read_bytes().split(b"\n")[:-1]):
            if re.search(wanted + rb"[,}]", line[-256:]):
                return line
    raise AssertionError(f"{receipt} is not in {directory}")


def event_of(directory: Path, receipt: Receipt | None) -> dict[str, Any]:
    """The event that a receipt speaks of."""
    event: dict[str, Any] = json.loads(line_of_receipt(directory, receipt))
    return event


def without_place(line: bytes) -> bytes:
    """The line with its own id and its place in the chain masked."""
    return _PLACE.sub(b"-", line)
