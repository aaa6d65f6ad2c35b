"""Measure the age of segments that are ready to be removed, by a clock that nobody can set.

A wall clock is set by hand, by NTP or by a broken battery, and a jump of a year would make every line old at once. So
no time in a line or a file is compared with it. The age of a segment is the time since it was first *seen* ready, by
the kernel's clock since boot, which also counts while none of our processes runs and while the machine sleeps.

That clock begins anew with each boot. Only the wall clock shows how much time passed between the last check before a
boot and the first one after it. It is believed for at most a day, and never if it runs backwards. So a jump of the wall
clock while the machine runs has no effect, a jump over a reboot makes a line older by at most a day, and a machine that
was off for a month keeps its lines for almost a month longer. The same holds for a directory that another host checks.
If the state is lost, all ages begin anew: lines are kept longer, never shorter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit.journal.files import replace_file
from otel_audit.journal.locks import boot_id

__all__ = ["STATE_NAME", "Ages", "Moment", "RetentionLimits", "now"]

STATE_NAME: Final = "retention.state"
_DAY_NS: Final = 86_400 * 10**9
_BETWEEN_BOOTS_MAX_NS: Final = _DAY_NS
_BOOTS_MAX: Final = 16  # hosts that check one directory


class Moment(NamedTuple):
    """The clocks at one moment, in nanoseconds since 1970, and since the boot with that id."""

    wall_ns: int
    boottime_ns: int
    boot_id: str


def now() -> Moment:
    """Return this moment.

    Source: clock_gettime(2), CLOCK_BOOTTIME, which cannot be set and counts while the machine sleeps.
    """
    return Moment(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), boot_id())


class RetentionLimits(msgspec.Struct, frozen=True):
    """The days to keep a segment after its delivery, and the bytes that all segments may take. 0 means no limit."""

    days: int = 0
    bytes: int = 0

    def is_old(self, age_ns: int) -> bool:
        """Return True if a segment of this age in nanoseconds may be removed."""
        return self.days > 0 and age_ns >= self.days * _DAY_NS


class Ages(msgspec.Struct):
    """The ages of ready segments. `lived_ns` is the time that has passed for this directory since its first check.

    `ready` is the `lived_ns` at which a segment was first seen ready, by stream and segment.
    """

    lived_ns: int = 0
    wall_ns: int | None = None
    # The clock since boot and `lived_ns` at its last check.
    boots: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)
    ready: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ages:
        """Return the stored ages, or new ones if they cannot be read.

        Raises:
            OSError: the file exists, and may not be read.
        """
        try:
            stored = json.loads(path.read_bytes())
            return cls._of(stored)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    @classmethod
    def _of(cls, stored: Mapping[str, Any]) -> Ages:
        return cls(
            int(stored["lived_ns"]),
            int(stored["wall_ns"]),
            {boot: (int(clock), int(lived)) for boot, (clock, lived) in stored["boots"].items()},
            {
                stream: {int(number): int(lived) for number, lived in segments.items()}
                for stream, segments in stored["ready"].items()
            },
        )

    def advance(self, moment: Moment) -> None:
        """Add the time that has passed, as far as it is certain."""
        clock, lived_ns = self.boots.get(moment.boot_id, (moment.boottime_ns + 1, 0))
        if moment.boottime_ns >= clock:
            lived_ns += moment.boottime_ns - clock
        else:
            step = 0 if self.wall_ns is None else moment.wall_ns - self.wall_ns
            lived_ns = self.lived_ns + min(max(0, step), _BETWEEN_BOOTS_MAX_NS)
        # Never back, since several hosts may check in turn, each with its own clock since boot.
        self.lived_ns = max(self.lived_ns, lived_ns)
        self.wall_ns = moment.wall_ns
        self.boots[moment.boot_id] = (moment.boottime_ns, self.lived_ns)
        while len(self.boots) > _BOOTS_MAX:
            del self.boots[min(self.boots, key=lambda boot: self.boots[boot][1])]

    def is_ready(self, stream_id: str, number: int) -> bool:
        """Return True if the segment was seen ready before."""
        return number in self.ready.get(stream_id, {})

    def note(self, stream_id: str, number: int) -> None:
        """Note that the segment is ready from now on, unless it was ready before."""
        self.ready.setdefault(stream_id, {}).setdefault(number, self.lived_ns)

    def forget_all(self, segments: Iterable[tuple[str, int]]) -> None:
        """Forget segments that are gone or no longer ready."""
        for stream_id, number in segments:
            left = self.ready.get(stream_id, {})
            left.pop(number, None)
            if not left:
                self.ready.pop(stream_id, None)

    def by_age(self) -> list[tuple[int, str, int]]:
        """Return all ready segments, oldest first: the age in nanoseconds, the stream and the number."""
        ready = [
            (lived_ns, stream_id, number)
            for stream_id, segments in self.ready.items()
            for number, lived_ns in segments.items()
        ]
        return [(self.lived_ns - lived_ns, stream_id, number) for lived_ns, stream_id, number in sorted(ready)]

    def store(self, path: Path, *, mode: int) -> None:
        """Store the ages in the file.

        Raises:
            OSError: the file is unchanged.
        """
        stored = {"lived_ns": self.lived_ns, "wall_ns": self.wall_ns, "boots": self.boots, "ready": self.ready}
        replace_file(path, json.dumps(stored, separators=(",", ":")).encode(), mode=mode)
