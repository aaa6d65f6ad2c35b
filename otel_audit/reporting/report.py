"""A report on a trail: the facts of a period, and the result of verifying the whole trail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from otel_audit._version import __version__
from otel_audit.query.filters import Filters
from otel_audit.query.gathering import Gathered
from otel_audit.reporting.activity import PRIVILEGED, SILENCE_S, Activity
from otel_audit.verification.findings import Report

__all__ = ["LIMITS", "TrailReport"]

LIMITS: Final = (
    "Events that were never recorded are not in it. Gaps list those that are known to be lost.",
    "Events are counted as they stand in the trail. The verification says how far that is as they were written.",
    "The verification is of the whole trail, not only of the period.",
    "Actors are called new if the trail has no earlier event of theirs. Events that retention removed are not in it.",
    f"Times of less than {SILENCE_S // 60} minutes without an event are not listed as silent.",
    f"Privileged are the events that a rule of the policy gave the tag {PRIVILEGED}, when they were recorded.",
)
"""Notes for the reader of any report."""


@dataclass(frozen=True, slots=True)
class TrailReport:
    """The contents of a report.

    `conclusion` is the verdict of the verification in a sentence. `verification` is None for a log of events, which has
    no chain that could be verified.
    """

    source: str
    made_ns: int
    asked: Filters
    activity: Activity
    gathered: Gathered
    conclusion: str
    verification: Report | None

    @property
    def exit_code(self) -> int:
        """The exit code of the verification: 1 if the trail is broken, or if a pin does not prove it."""
        return self.verification.exit_code if self.verification is not None else 0

    def as_json(self) -> Mapping[str, Any]:
        """Return the report in the form of `report --json`."""
        return {
            "source": self.source,
            "made_ns": self.made_ns,
            "version": __version__,
            "since_ns": self.asked.since_ns,
            "until_ns": self.asked.until_ns,
            "filters": {name: list(words) for name, words in self.asked.words.items() if words},
            **self.activity.as_json(),
            "damaged": self.gathered.damaged,
            "other_records": self.gathered.others,
            "conclusion": self.conclusion,
            "verification": self.verification.as_json() if self.verification is not None else None,
            "limits": list(LIMITS),
        }
