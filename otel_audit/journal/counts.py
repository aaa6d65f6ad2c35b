"""What the numbers mean that say what became of events: one value for a stream, a directory and a process.

`emitted = exported + pending + quarantined + dropped` holds for each. Application events only; lines that the journal
makes itself are counted apart, as `system`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from otel_audit.journal.line import Line
from otel_audit.journal.room import lost_events

__all__ = ["Counts", "counts_in"]


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
