"""Events that could not be written: counted at once, and told by a gap line as soon as one can be written."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from otel_audit.journal.room import Limited

__all__ = ["TRUNCATED", "Losses", "is_full", "lost_events", "reason_of"]

TRUNCATED: Final = "segment truncated"  # of lines that have a number: what lacks in the row of numbers counts them

_GAP_PREFIX: Final = b'{"system":"gap"'
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOBUFS})
_WORDS: Final = {errno.ENOBUFS: "queue full", errno.ESHUTDOWN: "closed"}


def is_full(error: OSError | None) -> bool:
    """True when there is no room, and nothing else is wrong."""
    return error is not None and error.errno in _FULL


def reason_of(error: OSError) -> str:
    """The words that count an event which could not be written."""
    if isinstance(error, Limited):
        return error.reason
    if error.errno in _WORDS:
        return _WORDS[error.errno]
    return "disk full" if is_full(error) else errno.errorcode.get(error.errno or 0, "write failed")


def lost_events(line: bytes) -> int:
    """How many events a system line says were lost before they had a number; 0 if it is no gap line."""
    if not line.startswith(_GAP_PREFIX):
        return 0
    try:
        gap = json.loads(line)["gap"]
        return 0 if gap.get("reason") == TRUNCATED else int(gap["lines"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0


@dataclass(slots=True)
class _Loss:
    """Those of one reason since the last gap line."""

    count: int
    first_ns: int
    last_ns: int


class Losses:
    """The losses of one process. A signal handler may add to them at any step."""

    def __init__(self) -> None:
        self._untold: dict[str, _Loss] = {}
        self._total: dict[str, int] = {}

    def __bool__(self) -> bool:
        """True while there are some that no gap line has told."""
        # Nearly always there has never been one, so that must cost nothing.
        return bool(self._untold) and any(loss.count for loss in list(self._untold.values()))

    @property
    def total(self) -> Mapping[str, int]:
        """All of them, by reason."""
        return dict(self._total)

    def add(self, reason: str, observed_ns: int) -> None:
        """One more event was lost."""
        self._total[reason] = self._total.get(reason, 0) + 1
        self.tell(reason, observed_ns)

    def tell(self, reason: str, observed_ns: int) -> None:
        """One more event is to be told by the next gap line; it is counted elsewhere."""
        loss = self._untold.setdefault(reason, _Loss(0, observed_ns, observed_ns))
        if not loss.count:
            loss.first_ns = observed_ns
        loss.count += 1
        loss.last_ns = observed_ns

    def untold(self) -> dict[str, Any]:
        """The content of the gap line that tells what is untold now."""
        by_reason = {
            reason: {"count": loss.count, "first_ns": loss.first_ns, "last_ns": loss.last_ns}
            for reason, loss in list(self._untold.items())
            if loss.count
        }
        return {"reason": "lost", "lines": sum(loss["count"] for loss in by_reason.values()), "by_reason": by_reason}

    def told(self, gap: Mapping[str, Any]) -> None:
        """The gap line is written. What was added meanwhile waits for the next one."""
        # None is taken out: a signal handler may be adding to it.
        for reason, loss in gap["by_reason"].items():
            self._untold[reason].count -= loss["count"]
