"""Counts of events by what became of them, in one form for a stream, a directory and a process.

`emitted = exported + pending + quarantined + dropped` holds for each of these. Only the application's events count; the
lines that the journal writes itself are counted separately, as `system`.

`Progress` is the work of one exporter on one stream, as the cursor keeps it. `shared_by_all` combines the work of all
exporters of a stream. `otel_audit.journal.census` uses them to count a directory, `otel_audit.delivery.counts` to count
a process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import msgspec

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

    * `exported`: every exporter has them, or the journal itself is the destination.
    * `pending`: at least one exporter has not reached them yet, or is waiting for its destination.
    * `quarantined`: an exporter's destination refused each of them alone.
    * `dropped`: they were never written, as a gap line reports, or were removed before every exporter had them.
    * `system`: lines of the journal itself; 0 where these are not counted, as for a process.
    """

    exported: int = 0
    pending: int = 0
    quarantined: int = 0
    dropped: int = 0
    system: int = 0

    @property
    def emitted(self) -> int:
        """The number of all events that the application recorded."""
        return self.exported + self.pending + self.quarantined + self.dropped

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.exported + other.exported,
            self.pending + other.pending,
            self.quarantined + other.quarantined,
            self.dropped + other.dropped,
            self.system + other.system,
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) - getattr(other, name) for name in Counts.__slots__))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={count!r}' for name, count in self.by_name().items())})"

    def when_exported(self) -> Counts:
        """Return the counts after a delivery: pending events become exported."""
        return replace(self, exported=self.exported + self.pending, pending=0)

    def when_refused(self) -> Counts:
        """Return the counts after each event was refused alone: pending events become quarantined."""
        return replace(self, quarantined=self.quarantined + self.pending, pending=0)

    def by_name(self) -> dict[str, int]:
        """Return each number under its name, with the sum `emitted` first."""
        return {"emitted": self.emitted, **{name: getattr(self, name) for name in Counts.__slots__}}

    @classmethod
    def of(cls, stored: object) -> Counts:
        """Read counts from a JSON object, such as an entry of the ledger. Missing numbers are 0."""
        known = stored if isinstance(stored, dict) else {}
        return cls(*(int(known.get(name, 0)) for name in Counts.__slots__))

    def stored(self) -> dict[str, int]:
        """Return the JSON form that `of` reads, without the numbers that are 0."""
        return {name: count for name in Counts.__slots__ if (count := getattr(self, name))}


@dataclass(frozen=True, slots=True, repr=False)
class Stats(Counts):
    """The events of this process at one moment. Without an exporter, the events in the journal count as `exported`.

    `filtered` counts events that the policy left out; no other number includes them. `blocked` gives, by exporter, the
    reason why delivery has stalled.
    """

    filtered: int = 0
    blocked: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{Counts.__repr__(self)[:-1]}, filtered={self.filtered}, blocked={self.blocked})"


class CountsByExporter(msgspec.Struct, frozen=True):
    """The application's events in a process, by exporter. For each exporter they add up to `emitted`.

    `dropped` is by reason, and equal for all exporters. `warnings` counts, by exporter, the exports that were accepted
    with a remark. `blocked` holds the exporters that have stalled. If `is_low`, the disk has so little free space that
    some events are not written. `notes` gives, by the origin of a ledger, the size and the time of its last note.
    """

    emitted: int = 0
    dropped: Mapping[str, int] = msgspec.field(default_factory=dict)
    exporters: Mapping[str, Counts] = msgspec.field(default_factory=dict)
    warnings: Mapping[str, int] = msgspec.field(default_factory=dict)
    blocked: Collection[str] = ()
    is_low: bool = False
    notes: Mapping[str, tuple[int, int]] = msgspec.field(default_factory=dict)

    @classmethod
    def sum(cls, parts: Iterable[CountsByExporter]) -> Self:
        """Return the sum over several trails."""
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
        """Return these numbers, with no counter lower than in `earlier`.

        Counters must never go down, but they would when a stream is sent again from its beginning.
        """
        exporters = {}
        for name, each in {**earlier.exporters, **self.exporters}.items():
            exported = max(each.exported, earlier.exporters.get(name, each).exported)
            exporters[name] = replace(each, exported=exported, pending=max(0, each.pending))
        return msgspec.structs.replace(
            self,
            emitted=max(self.emitted, earlier.emitted),
            dropped=_grown(earlier.dropped, self.dropped),
            exporters=exporters,
            warnings=_grown(earlier.warnings, self.warnings),
        )

    def at_rest(self) -> CountsByExporter:
        """Return the numbers that remain when the trail is gone: it is no longer blocked or low on space."""
        return msgspec.structs.replace(self, blocked=(), is_low=False, notes={})


def _grown(earlier: Mapping[str, int], later: Mapping[str, int]) -> dict[str, int]:
    """Return the larger values. Zeros are kept: an alert must see a counter before it first rises."""
    return {name: max(earlier.get(name, 0), later.get(name, 0)) for name in {**earlier, **later}}


def counts_in(lines: Iterable[Line]) -> Counts:
    """Count undelivered lines: their events are pending, and the losses that gap lines report are dropped."""
    pending = dropped = system = 0
    for line in lines:
        if line.system:
            system += 1
            dropped += lost_events(line.content)
        else:
            pending += 1
    return Counts(pending=pending, dropped=dropped, system=system)


class Progress(msgspec.Struct, frozen=True):
    """How far one exporter has come in a stream. `counts` covers every line before the position; none is pending.

    `damaged` is the number of damaged pieces that were skipped. For onlookers, `quarantine` lists every quarantined
    line; for the shipper, only the lines that are not in the file yet. `blocked` says why delivery has stalled.
    """

    position: Position = msgspec.field(default_factory=Position)
    counts: Counts = msgspec.field(default_factory=Counts)
    damaged: int = 0
    quarantine: tuple[Quarantined, ...] = ()
    blocked: str = ""

    @property
    def missing(self) -> int:
        """The number of lines before the position that vanished before they were read. No other number counts them."""
        counts = self.counts
        return max(0, self.position.seq - counts.exported - counts.system - counts.quarantined)

    @property
    def unlisted(self) -> int:
        """The number of quarantined events that no list names, since it was removed or lost in a power failure."""
        return max(0, self.counts.quarantined - sum(each.last_seq - each.first_seq + 1 for each in self.quarantine))

    @property
    def rank(self) -> tuple[int, int]:
        """A sort key for the exporters of one stream: the number of the last line, then the events delivered."""
        return self.position.seq, self.counts.exported + self.counts.quarantined

    def lacked_by(self, others: Iterable[Progress]) -> int:
        """Return how many of its lines another exporter, which has come further, is known to lack."""
        ahead = (one for one in others if one.position.seq > self.position.seq)
        known = (one.missing - (one.position.seq - self.position.seq) for one in ahead)
        return max(0, max(known, default=0) - self.missing)

    def passed(self, end: Position, counts: Counts) -> Progress:
        """Return the progress after further lines, which end at `end` and came out as in `counts`."""
        # Compare line numbers, not offsets: in a file that somebody cut, a later line has a lower offset.
        position = self.position if self.position.seq >= end.seq else end
        return msgspec.structs.replace(self, position=position, counts=self.counts + counts, blocked="")

    def with_quarantined(self, seq: int, reason: str) -> Progress:
        """Return the progress with one more line in quarantine. Neighbours with the same reason form one range."""
        last = self.quarantine[-1] if self.quarantine else None
        if last is not None and last.last_seq + 1 == seq and last.reason == reason:
            ranges = (*self.quarantine[:-1], last._replace(last_seq=seq))
        else:
            ranges = (*self.quarantine, Quarantined(seq, seq, reason))
        return msgspec.structs.replace(self, quarantine=ranges)

    def listing(self, held: Held) -> Progress:
        """Return the progress with the quarantine of the file, up to the position. Released lines count as exported."""
        held = held.up_to(self.position.seq)
        freed = held.freed_events
        counts = self.counts + Counts(exported=freed, quarantined=-freed)
        return msgspec.structs.replace(self, counts=counts, quarantine=tuple(held.aside))

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Progress:
        """Read progress from its JSON form in the cursor file.

        Raises:
            TypeError: the fields are unknown, as another version may have written them.
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
    """Return the progress of the exporter that has the least of a stream. Without exporters, return empty progress."""
    return min(exporters, key=lambda each: each.rank, default=Progress())


def shared_by_all(exporters: Collection[Progress], quarantined: int | None = None) -> Counts:
    """Return the combined counts of a stream's exporters, up to the position of the one that is furthest behind.

    An event is exported once every exporter has it, and quarantined if at least one set it aside. It is dropped if the
    exporter furthest behind has it and another one is known to lack it. Pass `quarantined` if the caller has already
    counted the events that at least one exporter set aside.
    """
    slowest = furthest_behind(exporters)
    counts = slowest.counts
    if quarantined is None:
        by_others = _lines_in(refused_by_any(exporters)) - _lines_in(refused_by_any([slowest]))
        # The list also has lines of the journal's own and does not mark them.
        quarantined = counts.quarantined + min(by_others, sum(each.counts.quarantined for each in exporters))
    lacked = slowest.lacked_by(exporters)
    exported = counts.exported + counts.quarantined - quarantined - lacked
    return Counts(exported=exported, quarantined=quarantined, dropped=lacked, system=counts.system)


def refused_by_any(exporters: Collection[Progress]) -> list[tuple[int, int]]:
    """Return the ranges of lines that at least one exporter set aside, ascending, each line once.

    Lines behind the exporter that is furthest behind are left out.
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
