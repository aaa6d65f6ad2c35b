"""Sends parcels one after the other, and waits for an endpoint that is away.

Source: the outcome table of docs/delivery.md, with two differences for something that a person waits for: an endpoint
that is away is given up after a while, and one that refuses everything at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from otel_audit.delivery.backoff import Backoff
from otel_audit.delivery.halving import Halving, Repetition, Stuck, Suspect, TooLarge
from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, Unavailable
from otel_audit.replaying.parcel import Parcel, Trouble

__all__ = ["Patience", "RequestSender", "Sending"]


class RequestSender(Protocol):
    """Where requests go, such as `OtlpExporter`."""

    def send(self, request: bytes, records: int) -> ExportOutcome:
        """What became of a serialised request with so many records."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How an endpoint that is away is waited for.

    `give_up_after_s`: from the first failure on. `pause` waits so many seconds, or until `stopped` is true.
    """

    give_up_after_s: float = 60.0
    backoff_cap_s: float = 60.0
    pause: Callable[[float], None] = time.sleep
    stopped: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic


class Sending:
    """Gives parcels to a sender. Each record is accepted, in a part that `accepted` is told, or refused twice alone.

    `refused` is told of the latter. One thread.
    """

    def __init__(
        self,
        sender: RequestSender,
        patience: Patience,
        *,
        accepted: Callable[[Parcel], None],
        refused: Callable[[Trouble], None],
    ) -> None:
        self._accepted = accepted
        self._repetition = Repetition(patience.clock)
        self._halving = Halving(
            _PatientEndpoint(sender, patience, self._repetition),
            accepted=self._count,
            refused=lambda suspect: refused(_trouble(suspect)),
        )
        self._whole: Parcel | None = None

    @property
    def is_settled(self) -> bool:
        """Nothing was refused of which `refused` was not told."""
        return not self._halving.suspects

    def deliver(self, parcel: Parcel) -> str:
        """Send a parcel. Empty, or why it does not go on; what was not told then is still to be sent."""
        self._whole = parcel
        return self._reason(self._halving.deliver(parcel))

    def settle(self) -> str:
        """Find out whether it is the refused records that are bad. Empty, or why something stays unsettled."""
        return self._reason(self._halving.ask())

    def _count(self, part: Parcel) -> None:
        if part is self._whole:  # halves that are accepted do not clear the one that is not
            self._repetition.forget_server_errors()
        self._accepted(part)

    def _reason(self, stopped: TooLarge | Unavailable | Stuck | None) -> str:
        match stopped:
            case None:
                return ""
            case Stuck():
                suspects = self._halving.suspects
                (file, line), said = _trouble(suspects[0])
                return f"{len(suspects)} records were refused and nothing accepted since, from {file}:{line} on: {said}"
            case TooLarge(reason=reason) | Unavailable(reason=reason):
                return reason


class _PatientEndpoint:
    """The sender, waited for as long as there is patience: each outcome stands."""

    def __init__(self, sender: RequestSender, patience: Patience, repetition: Repetition) -> None:
        self._sender = sender
        self._patience = patience
        self._backoff = Backoff(patience.backoff_cap_s)
        self._repetition = repetition
        self.accepted = 0
        self.last_accepted: Parcel | None = None

    def send(self, part: Parcel) -> ExportOutcome:
        """See `Endpoint`. Unavailable: the patience is over, or somebody asked to stop."""
        if self._patience.stopped():
            return Unavailable("stopped")
        outcome = self._outcome_of(part)
        if isinstance(outcome, Accepted):
            self.accepted += 1
            self.last_accepted = part
        return outcome

    def _outcome_of(self, part: Parcel) -> ExportOutcome:
        deadline = None
        while True:
            outcome = self._repetition.judged(self._try(part), part.records)
            if not isinstance(outcome, Unavailable):
                self._backoff.succeeded()
                return outcome
            now = self._patience.clock()
            deadline = now + self._patience.give_up_after_s if deadline is None else deadline
            wait_s = self._backoff.failed(outcome.retry_after_s)
            if now >= deadline or (outcome.retry_after_s is not None and now + wait_s > deadline):
                return outcome
            self._patience.pause(min(wait_s, deadline - now))
            if self._patience.stopped():
                return replace(outcome, reason=f"stopped: {outcome.reason}")

    def _try(self, part: Parcel) -> ExportOutcome:
        try:
            request = part.request()
        except MemoryError:
            raise
        except Exception as error:  # nothing but lines went in: it will not be better the next time
            return Refused(f"no record can be built: {error or type(error).__name__}")
        return self._sender.send(request, part.records)


def _trouble(suspect: Suspect[Parcel]) -> Trouble:
    return Trouble(suspect.part.place, suspect.reason)
