"""What the numbers mean that say what became of events: one value for a stream, a directory and a process.

`emitted = exported + pending + quarantined + dropped` holds for each. Application events only; lines that the journal
makes itself are counted apart, as `system`.

`Progress` is what one exporter has done with one stream, as its cursor keeps it, and `shared_by_all` what all exporters
of a stream have done together. `otel_audit.journal.census` counts a directory with them, and
`otel_audit.delivery.counts` a process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from otel_audit.journal.line import Line, Position
from otel_audit.journal.quarantine import Held, Quarantined
from otel_audit.journal.room import lost_events

__all__ = [
    "Counts",
    "CountsByExporter",
    "Progress",
    "Stats",
    "counts_in",
    "furthest_behind",
    "refused_by_any",
    "shared_by_all",
]


@dataclass(frozen=True, slots=True, repr=False)
class Counts:
    """Application events by what became of them, and the journal's own lines.

    * `exported`: every exporter has them; where the journal is the destination, they are in it.
    * `pending`: one of the exporters has not come to them, or waits for its destination.
    * `quarantined`: the destination of one of the exporters refused them one by one.
    * `dropped`: they were not written, as a gap tells, or somebody took them away before an exporter had them.
    * `system`: lines of the journal itself; 0 where they are not counted, as for a process.
    """

    exported: int = 0
    pending: int = 0
    quarantined: int = 0
    dropped: int = 0
    system: int = 0

    @property
    def emitted(self) -> int:
        """All events that the application recorded."""
        return self.exported + self.pending + self.quarantined + self.dropped

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in Counts.__slots__))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) - getattr(other, name) for name in Counts.__slots__))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={count!r}' for name, count in self.by_name().items())})"

    def when_exported(self) -> Counts:
        """Return these after a delivery: what was pending is exported."""
        return replace(self, exported=self.exported + self.pending, pending=0)

    def when_refused(self) -> Counts:
        """Return these after each event was refused alone: what was pending is quarantined."""
        return replace(self, quarantined=self.quarantined + self.pending, pending=0)

    def by_name(self) -> dict[str, int]:
        """Return every number under its name, their sum `emitted` first."""
        return {"emitted": self.emitted, **{name: getattr(self, name) for name in Counts.__slots__}}

    @classmethod
    def of(cls, stored: object) -> Counts:
        """Return what a JSON object says, such as an entry of the ledger; what is not there is 0."""
        known = stored if isinstance(stored, dict) else {}
        return cls(*(int(known.get(name, 0)) for name in Counts.__slots__))

    def stored(self) -> dict[str, int]:
        """Return the JSON form that `of` reads; what is 0 is left out."""
        return {name: count for name in Counts.__slots__ if (count := getattr(self, name))}


@dataclass(frozen=True, slots=True, repr=False)
class Stats(Counts):
    """The events of this process at one moment. `exported` with no exporter: the journal is the destination.

    `filtered` events were not wanted, and are in no other number. `blocked` says by exporter why nothing moves.
    """

    filtered: int = 0
    blocked: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{Counts.__repr__(self)[:-1]}, filtered={self.filtered}, blocked={self.blocked})"


@dataclass(frozen=True, slots=True)
class CountsByExporter:
    """The events of the application in a process. For each of `exporters` they add up to `emitted`.

    `dropped` is by reason, and the same for all. `warnings`: by exporter, exports accepted with a remark. `blocked`:
    the exporters with which nothing moves. `is_low`: the disk has so little free space that not every event is written.
    `notes`: by the origin of a ledger, how many lines its last note is over, and when that was signed.
    """

    emitted: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    exporters: Mapping[str, Counts] = field(default_factory=dict)
    warnings: Mapping[str, int] = field(default_factory=dict)
    blocked: Collection[str] = ()
    is_low: bool = False
    notes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def sum(cls, parts: Iterable[CountsByExporter]) -> Self:
        """Of several trails together."""
        emitted, dropped, warnings, blocked, is_low = 0, Counter[str](), Counter[str](), set[str](), False
        exporters, notes = dict[str, Counts](), dict[str, tuple[int, int]]()
        for part in parts:
            emitted += part.emitted
            dropped.update(part.dropped)
            warnings.update(part.warnings)
            blocked.update(part.blocked)
            is_low = is_low or part.is_low
            notes.update({origin: max(note, notes.get(origin, note)) for origin, note in part.notes.items()})
            for name, each in part.exporters.items():
                exporters[name] = exporters.get(name, Counts()) + each
        return cls(emitted, dropped, exporters, warnings, blocked, is_low, notes)

    def after(self, earlier: CountsByExporter) -> CountsByExporter:
        """These numbers, seen later than the earlier ones: what only grows is not less than it was.

        It would be, when a stream is sent once more from its beginning.
        """
        exporters = {}
        for name, each in {**earlier.exporters, **self.exporters}.items():
            exported = max(each.exported, earlier.exporters.get(name, each).exported)
            exporters[name] = replace(each, exported=exported, pending=max(0, each.pending))
        return replace(
            self,
            emitted=max(self.emitted, earlier.emitted),
            dropped=_grown(earlier.dropped, self.dropped),
            exporters=exporters,
            warnings=_grown(earlier.warnings, self.warnings),
        )

    def at_rest(self) -> CountsByExporter:
        """As they stay when the trail is gone: nothing of it is blocked or refused any more."""
        return replace(self, blocked=(), is_low=False, notes={})


def _grown(earlier: Mapping[str, int], later: Mapping[str, int]) -> dict[str, int]:
    """Also what is 0: an alert needs to see a counter before its first step."""
    return {name: max(earlier.get(name, 0), later.get(name, 0)) for name in {**earlier, **later}}


def counts_in(lines: Iterable[Line]) -> Counts:
    """Return what lines tell that nobody has delivered: their events are pending, those that a gap tells dropped."""
    pending = dropped = system = 0
    for line in lines:
        if line.system:
            system += 1
            dropped += lost_events(line.content)
        else:
            pending += 1
    return Counts(pending=pending, dropped=dropped, system=system)


@dataclass(frozen=True, slots=True)
class Progress:
    """What one exporter has done with a stream: everything before the position is in its `counts`, none is pending.

    `damaged` pieces of the files were passed over. `quarantine`: every line that is in it, for onlookers; for whoever
    ships, those that are not kept yet. `blocked` says why nothing moves now.
    """

    position: Position = field(default_factory=Position)
    counts: Counts = field(default_factory=Counts)
    damaged: int = 0
    quarantine: tuple[Quarantined, ...] = ()
    blocked: str = ""

    @property
    def missing(self) -> int:
        """How many lines before the position were gone before they could be read: nothing else counts them."""
        counts = self.counts
        return max(0, self.position.seq - counts.exported - counts.system - counts.quarantined)

    @property
    def unlisted(self) -> int:
        """How many events are in quarantine of which nothing says where: the list was removed, or lost with power."""
        return max(0, self.counts.quarantined - sum(each.last_seq - each.first_seq + 1 for each in self.quarantine))

    @property
    def rank(self) -> tuple[int, int]:
        """What orders the exporters of one stream: the number of the last line, then how many of the events it has."""
        return self.position.seq, self.counts.exported + self.counts.quarantined

    def lacked_by(self, others: Iterable[Progress]) -> int:
        """How many of its lines one of the others is known to lack, which have come further."""
        ahead = (one for one in others if one.position.seq > self.position.seq)
        known = (one.missing - (one.position.seq - self.position.seq) for one in ahead)
        return max(0, max(known, default=0) - self.missing)

    def passed(self, end: Position, counts: Counts) -> Progress:
        """Return the progress behind further lines, which end there and were dealt with as `counts` say."""
        # By the number of the line: in a file that somebody cut, a later line has a lower offset.
        position = self.position if self.position.seq >= end.seq else end
        return replace(self, position=position, counts=self.counts + counts, blocked="")

    def with_quarantined(self, seq: int, reason: str) -> Progress:
        """Return it with one more line in quarantine; neighbours with the same reason become one range."""
        last = self.quarantine[-1] if self.quarantine else None
        if last is not None and last.last_seq + 1 == seq and last.reason == reason:
            ranges = (*self.quarantine[:-1], last._replace(last_seq=seq))
        else:
            ranges = (*self.quarantine, Quarantined(seq, seq, reason))
        return replace(self, quarantine=ranges)

    def listing(self, held: Held) -> Progress:
        """Return it with the quarantine that is held up to the position: released lines count as exported."""
        held = held.up_to(self.position.seq)
        freed = held.freed_events
        counts = self.counts + Counts(exported=freed, quarantined=-freed)
        return replace(self, counts=counts, quarantine=tuple(held.aside))

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Progress:
        """Return what the JSON form in the cursor file says.

        Raises:
            TypeError: it has other fields, as that of another version may.
        """
        rest = {name: value for name, value in stored.items() if name not in _COUNTED}
        counts = Counts(**{name: stored[name] for name in _COUNTED if name in stored})
        position = Position(**rest.pop("position"))
        quarantine = tuple(Quarantined(**entry) for entry in rest.pop("quarantine"))
        return cls(position, counts, quarantine=quarantine, **rest)

    def stored(self) -> dict[str, Any]:
        """Return the JSON form that `of` reads."""
        return {
            "position": self.position._asdict(),
            "exported": self.counts.exported,
            "system": self.counts.system,
            "quarantined": self.counts.quarantined,
            "damaged": self.damaged,
            "dropped": self.counts.dropped,
            "quarantine": [each._asdict() for each in self.quarantine],
            "blocked": self.blocked,
        }


_COUNTED = ("exported", "system", "quarantined", "dropped")


def furthest_behind(exporters: Iterable[Progress]) -> Progress:
    """Return the progress of the exporter of a stream that has the least of it; of none, that of a beginner."""
    return min(exporters, key=lambda each: each.rank, default=Progress())


def shared_by_all(exporters: Collection[Progress], quarantined: int | None = None) -> Counts:
    """Return what the exporters of a stream have done together, as far as the one that is furthest behind has come.

    An event is exported when every one of them has it, and quarantined when one of them set it aside. `dropped` are
    those that this exporter has, and another one is known to lack. `quarantined`: how many one of them set aside, where
    the caller has counted them.
    """
    slowest = furthest_behind(exporters)
    counts = slowest.counts
    if quarantined is None:
        by_others = _lines_in(refused_by_any(exporters)) - _lines_in(refused_by_any([slowest]))
        # The list does not say which of its lines are the journal's own.
        quarantined = counts.quarantined + min(by_others, sum(each.counts.quarantined for each in exporters))
    lacked = slowest.lacked_by(exporters)
    exported = counts.exported + counts.quarantined - quarantined - lacked
    return Counts(exported=exported, quarantined=quarantined, dropped=lacked, system=counts.system)


def refused_by_any(exporters: Collection[Progress]) -> list[tuple[int, int]]:
    """Return the ranges of lines that one of the exporters set aside, ascending, each line once.

    Only as far as the one that is furthest behind has come.
    """
    last_seq = furthest_behind(exporters).position.seq
    union: list[tuple[int, int]] = []
    listed = (one for each in exporters for one in each.quarantine)
    for first, last in sorted((one.first_seq, min(one.last_seq, last_seq)) for one in listed):
        if last < first:
            continue
        if union and first <= union[-1][1] + 1:
            union[-1] = (union[-1][0], max(last, union[-1][1]))
        else:
            union.append((first, last))
    return union


def _lines_in(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)
