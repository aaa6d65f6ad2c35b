"""Measure how old what is ready to go is, by a clock that nobody can set.

A wall clock is set by hand, by NTP, by a broken battery, and a jump of a year would make every line old at once, so no
time in a line or a file is compared with it. A segment is as old as the time that has passed since it was first *seen*
ready to go, by the kernel's clock since boot, which also counts while no process of ours runs and while the machine
sleeps. It begins anew with each boot. How much passed from the last look before a boot to the first one after it, only
the wall clock can say; it is believed for a day and no more, and never when it runs backwards. A jump of the wall clock
while the machine runs has no effect at all, one over a reboot makes a line older by a day at most, and a machine that
was off for a month keeps its lines for almost a month longer. The same holds for a directory that another host looks
at. A state that is lost begins anew: lines are kept longer, never shorter.
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

__all__ = ["STATE_NAME", "Ages", "Moment", "now"]

STATE_NAME: Final = "retention.state"
_BETWEEN_BOOTS_MAX_NS: Final = 86_400 * 10**9
_BOOTS_MAX: Final = 16  # hosts that look at one directory


class Moment(NamedTuple):
    """What the clocks say at one moment, in nanoseconds: since 1970, and since the boot of that id."""

    wall_ns: int
    boottime_ns: int
    boot_id: str


def now() -> Moment:
    """This moment. Source: clock_gettime(2), CLOCK_BOOTTIME: it cannot be set, and counts while the machine sleeps."""
    return Moment(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), boot_id())


class Ages(msgspec.Struct):
    """How old what is ready to go is. `lived_ns` is the time that has passed for this directory since its first look.

    `ready` says by stream and segment at which `lived_ns` it was first seen ready.
    """

    lived_ns: int = 0
    wall_ns: int | None = None
    # Clock since boot, and `lived_ns` at its last look.
    boots: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)
    ready: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ages:
        """As they were stored; all begins anew when they cannot be read.

        Raises:
            OSError: the file is there, and may not be read.
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
        """Let the time pass that has passed, as far as it is certain."""
        clock, lived_ns = self.boots.get(moment.boot_id, (moment.boottime_ns + 1, 0))
        if moment.boottime_ns >= clock:
            lived_ns += moment.boottime_ns - clock
        else:
            step = 0 if self.wall_ns is None else moment.wall_ns - self.wall_ns
            lived_ns = self.lived_ns + min(max(0, step), _BETWEEN_BOOTS_MAX_NS)
        # Never back: where several hosts look in turn, each has its own clock since boot.
        self.lived_ns = max(self.lived_ns, lived_ns)
        self.wall_ns = moment.wall_ns
        self.boots[moment.boot_id] = (moment.boottime_ns, self.lived_ns)
        while len(self.boots) > _BOOTS_MAX:
            del self.boots[min(self.boots, key=lambda boot: self.boots[boot][1])]

    def is_ready(self, stream_id: str, number: int) -> bool:
        """It was seen ready before."""
        return number in self.ready.get(stream_id, {})

    def note(self, stream_id: str, number: int) -> None:
        """It is ready from now on, unless it was so before."""
        self.ready.setdefault(stream_id, {}).setdefault(number, self.lived_ns)

    def forget_all(self, segments: Iterable[tuple[str, int]]) -> None:
        """These are gone, or not ready any more."""
        for stream_id, number in segments:
            left = self.ready.get(stream_id, {})
            left.pop(number, None)
            if not left:
                self.ready.pop(stream_id, None)

    def by_age(self) -> list[tuple[int, str, int]]:
        """All that is ready, oldest first: for how many nanoseconds, stream, segment."""
        ready = [
            (lived_ns, stream_id, number)
            for stream_id, segments in self.ready.items()
            for number, lived_ns in segments.items()
        ]
        return [(self.lived_ns - lived_ns, stream_id, number) for lived_ns, stream_id, number in sorted(ready)]

    def store(self, path: Path, *, mode: int) -> None:
        """They are in the file, whole, or the file is as it was.

        Raises:
            OSError: it is as it was.
        """
        stored = {"lived_ns": self.lived_ns, "wall_ns": self.wall_ns, "boots": self.boots, "ready": self.ready}
        replace_file(path, json.dumps(stored, separators=(",", ":")).encode(), mode=mode)
