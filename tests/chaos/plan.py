"""What goes wrong, and when: drawn from the seed before anything runs, the same for every contender."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["SHIPPERS", "WRITERS", "Act", "Role", "Step", "count", "plan"]

WRITERS: Final = 4
SHIPPERS: Final = 2

_Span = tuple[float, float]


class Role(StrEnum):
    """Who it happens to."""

    WRITER = "writer"
    SHIPPER = "shipper"
    COLLECTOR = "collector"
    DISK = "disk"


class Act(StrEnum):
    """What is done. Every fault comes with the act that ends it."""

    KILL = "kill"  # SIGKILL, until START
    OUTAGE = "outage"  # a kill that lasts, until START
    LEAVE = "leave"  # asked to end, as for a new version, until START
    START = "start"
    HANG = "hang"  # SIGSTOP, until RESUME
    RESUME = "resume"
    FILL = "fill"  # not a byte is left on the disk, until FREE
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Step:
    """One act, so many seconds after the beginning. `index`: which one of its role."""

    at_s: float
    role: Role
    index: int
    act: Act


@dataclass(frozen=True, slots=True)
class _Fault:
    act: Act
    end: Act
    lasts_s: _Span


@dataclass(frozen=True, slots=True)
class _Rates:
    """How one role is treated: a pause, then the next fault of a shuffled deck, so that each kind has its share."""

    members: int
    pause_s: _Span
    deck: tuple[_Fault, ...]


_KILL: Final = _Fault(Act.KILL, Act.START, (0.0, 1.5))
_LEAVE: Final = _Fault(Act.LEAVE, Act.START, (0.5, 2.0))
_HANG: Final = _Fault(Act.HANG, Act.RESUME, (0.5, 4.0))
_RATES: Final[Mapping[Role, _Rates]] = {
    Role.WRITER: _Rates(WRITERS, (1.5, 4.0), (*[_KILL] * 5, _HANG, _LEAVE)),
    Role.SHIPPER: _Rates(SHIPPERS, (2.0, 4.0), (*[_KILL] * 5, *[_HANG] * 2, _LEAVE)),
    # With a new start of a second or two, the collector is away for a third of the time.
    Role.COLLECTOR: _Rates(
        1,
        (3.0, 6.0),
        (*[_KILL] * 4, _Fault(Act.HANG, Act.RESUME, (1.5, 7.0)), _Fault(Act.OUTAGE, Act.START, (6.0, 14.0))),
    ),
    Role.DISK: _Rates(1, (7.0, 13.0), (_Fault(Act.FILL, Act.FREE, (1.5, 4.0)),)),
}


def plan(seed: int, seconds: float) -> Mapping[Role, Sequence[Step]]:
    """The steps of each role in the order of time. Every fault is over by the end of the time."""
    return {role: tuple(_steps(role, random.Random(f"{seed}/{role}"), seconds)) for role in Role}


def count(steps: Sequence[Step], *acts: Act) -> int:
    """How many of the steps are one of these acts."""
    return sum(step.act in acts for step in steps)


def _steps(role: Role, draw: random.Random, seconds: float) -> Iterator[Step]:
    rates = _RATES[role]
    now_s = 0.0
    while True:
        for fault in draw.sample(rates.deck, len(rates.deck)):
            begin_s = now_s + draw.uniform(*rates.pause_s)
            now_s = begin_s + draw.uniform(*fault.lasts_s)
            if now_s > seconds:
                return
            index = draw.randrange(rates.members)
            yield Step(begin_s, role, index, fault.act)
            yield Step(now_s, role, index, fault.end)
