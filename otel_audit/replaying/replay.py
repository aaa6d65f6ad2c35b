"""Sends the records of a source to an OTLP endpoint and keeps how far it came.

A record is passed when it was refused alone twice, and another one was accepted in between: an endpoint that refuses
everything costs no record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from otel_audit.replaying.parcel import Parcel, Trouble
from otel_audit.replaying.sending import Patience, RequestSender, Sending
from otel_audit.replaying.source import Limits, Portion, Source
from otel_audit.replaying.state import ReplayState, Tally
from otel_audit.stores.numbered_lines import Mark

__all__ = ["Replay", "ReplayReport"]


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What was kept when it ended. `left` says why it did not come to the end; empty if it did."""

    tally: Tally
    left: str

    @property
    def is_complete(self) -> bool:
        """Every record of the source was accepted."""
        return not (self.left or self.tally.refused or self.tally.unreadable)


class Replay:
    """One run over a source, from where the state says. `moved` is told how many bytes of it are passed."""

    def __init__(
        self,
        source: Source,
        sender: RequestSender,
        state: ReplayState,
        *,
        limits: Limits | None = None,
        patience: Patience | None = None,
        moved: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        self._source = source
        self._state = state
        self._limits = limits or Limits()
        self._patience = patience or Patience()
        self._moved = moved
        self._sending = Sending(sender, self._patience, accepted=self._count_sent, refused=self._count_refused)
        self._tally = state.tally
        self._passed: dict[str, Mark] = {}  # not kept yet

    def run(self) -> ReplayReport:
        """Everything was sent, or the report says why not.

        Raises:
            OSError: a file cannot be read, or the state not be kept.
        """
        unfinished: list[Trouble] = []
        for portion in self._source.portions(dict(self._state.marks), self._limits):
            left = "stopped" if self._patience.stopped() else self._deliver(portion)
            if left:
                return ReplayReport(self._state.tally, left)
            self._passed[portion.file_id] = portion.mark
            self._keep()
            self._moved(portion.size_bytes)
            unfinished += [portion.unfinished] if portion.unfinished else []
        left = self._sending.settle()
        self._keep()
        return ReplayReport(self._state.tally.with_unreadable(unfinished), left)

    def _keep(self) -> None:
        if self._passed and self._sending.is_settled:
            self._state.keep(self._passed, self._tally)
            self._passed = {}

    def _deliver(self, portion: Portion) -> str:
        """Empty when each record of a portion was accepted or refused alone, or why it does not go on."""
        self._tally = self._tally.with_unreadable(portion.unreadable)
        return self._sending.deliver(portion.parcel) if portion.parcel else ""

    def _count_sent(self, part: Parcel) -> None:
        self._tally = self._tally.with_sent(part.records)

    def _count_refused(self, trouble: Trouble) -> None:
        self._tally = self._tally.with_refused([trouble])
