"""The numbers of a trail: together, for each of its exporters, and summed over trails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

__all__ = ["ExporterNumbers", "Numbers", "Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """The events of this process at one moment: `emitted = exported + pending + quarantined + dropped`.

    `exported` counts what every exporter has; with no exporter, the journal is the destination. `filtered` events were
    not wanted, and are in no other number. `blocked` says by exporter why nothing moves.
    """

    emitted: int
    exported: int
    pending: int
    quarantined: int
    dropped: int
    filtered: int = 0
    blocked: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExporterNumbers:
    """What one exporter did with the events of this process. `warnings`: exports accepted with a remark."""

    exported: int = 0
    pending: int = 0
    quarantined: int = 0
    warnings: int = 0
    blocked: bool = False

    def __add__(self, other: ExporterNumbers) -> ExporterNumbers:
        return ExporterNumbers(
            self.exported + other.exported,
            self.pending + other.pending,
            self.quarantined + other.quarantined,
            self.warnings + other.warnings,
            self.blocked or other.blocked,
        )

    def after(self, earlier: ExporterNumbers) -> ExporterNumbers:
        """These numbers, seen later than the earlier ones: what only grows is not less than it was."""
        return replace(
            self,
            exported=max(self.exported, earlier.exported),
            pending=max(0, self.pending),
            warnings=max(self.warnings, earlier.warnings),
        )


@dataclass(frozen=True, slots=True)
class Numbers:
    """Events of the application: for each exporter `emitted = exported + pending + quarantined + dropped`.

    `dropped` is by reason. `is_low`: the disk has so little free space that not every event is written.
    """

    emitted: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    exporters: Mapping[str, ExporterNumbers] = field(default_factory=dict)
    is_low: bool = False

    @classmethod
    def sum(cls, parts: Iterable[Numbers]) -> Self:
        """Of several trails together."""
        emitted, dropped, exporters, is_low = 0, Counter[str](), dict[str, ExporterNumbers](), False
        for part in parts:
            emitted += part.emitted
            dropped.update(part.dropped)
            is_low = is_low or part.is_low
            for name, each in part.exporters.items():
                exporters[name] = exporters.get(name, ExporterNumbers()) + each
        return cls(emitted, dropped, exporters, is_low)

    def after(self, earlier: Numbers) -> Numbers:
        """These numbers, seen later than the earlier ones: what only grows is not less than it was.

        It would be, when a stream is sent once more from its beginning.
        """
        exporters = {
            name: each.after(earlier.exporters.get(name, ExporterNumbers()))
            for name, each in {**earlier.exporters, **self.exporters}.items()
        }
        dropped = {  # also what is 0: an alert needs to see a counter before its first step
            reason: max(self.dropped.get(reason, 0), earlier.dropped.get(reason, 0))
            for reason in {**earlier.dropped, **self.dropped}
        }
        return Numbers(max(self.emitted, earlier.emitted), dropped, exporters, self.is_low)

    def at_rest(self) -> Numbers:
        """As they stay when the trail is gone: nothing of it is blocked or refused any more."""
        exporters = {name: replace(each, blocked=False) for name, each in self.exporters.items()}
        return replace(self, exporters=exporters, is_low=False)
