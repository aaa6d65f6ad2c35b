"""Moments and lengths of time as text. They are read as people write them, and moments are written in UTC."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from otel_audit.errors import AuditError

__all__ = ["length_s", "moment_ns", "utc_text"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LENGTH: Final = re.compile(r"(\d{1,9})([smhdw])\Z", re.ASCII)
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DAYS_AGO: Final = {"today": 0, "yesterday": 1}


def length_s(text: str) -> int | None:
    """Return a length of time such as 90s, 15m, 24h, 7d or 2w in seconds, or None if the text is something else."""
    match = _LENGTH.match(text)
    return None if match is None else int(match[1]) * _UNITS_S[match[2]]


def moment_ns(text: str) -> int:
    """Return a moment in nanoseconds since 1970, from a length of time before now, a day's name, or ISO 8601 in UTC.

    One that 64 bits cannot hold is the nearest that they can, from 1677 to 2262, since no event is beyond.

    Raises:
        AuditError: the text is none of these.
    """
    if (ago_s := length_s(text)) is not None:
        return _in_int64(time.time_ns() - ago_s * 10**9)
    try:
        if text in _DAYS_AGO:
            today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            moment = today - timedelta(days=_DAYS_AGO[text])
        else:
            moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise AuditError(
            f"expected a time such as 2d, 3h, yesterday, 2026-11-29 or 2026-11-29T08:00Z, got {text[:100]!r}"
        ) from error
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return _in_int64(since // timedelta(microseconds=1) * 1000)


def _in_int64(time_ns: int) -> int:
    return max(-(2**63), min(time_ns, 2**63 - 1))


def utc_text(time_ns: int, timespec: str = "seconds") -> str:
    """Return a moment in ISO 8601, such as 2026-11-29T08:00:00Z. One beyond the year 9999 stays a number."""
    try:
        moment = _EPOCH + timedelta(microseconds=time_ns // 1000)
    except OverflowError:
        return f"{time_ns} ns since 1970"
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")
