"""Sends parcels one after the other: halves what is refused, waits for an endpoint that is away.

Source: the outcome table of docs/delivery.md, with two differences for something that a person waits for: an endpoint
that is away is given up after a while, and one that refuses everything at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from otel_audit.delivery.backoff import Backoff
from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, RefusedFor, Unavailable, UnavailableFor
from otel_audit.replaying.parcel import Parcel, Trouble

__all__ = ["Patience", "RequestSender", "Sending"]

_TIMEOUTS_BEFORE_HALVING: Final = 3
# So many in a row, with nothing accepted in between, and it is asked whether it is the records.
_SUSPECTS_MAX: Final = 32


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
    """Gives parcels to a sender. Each record is accepted, in a part that `accepted` is told, or refused alone.

    `refused` is told of those as soon as another record is accepted: until then it may be the endpoint that refuses
    everything. One thread.
    """

    def __init__(
        self,
        sender: RequestSender,
        patience: Patience,
        *,
        accepted: Callable[[Parcel], None],
        refused: Callable[[Sequence[Trouble]], None],
    ) -> None:
        self._sender = sender
        self._patience = patience
        self._accepted = accepted
        self._refused = refused
        self._backoff = Backoff(patience.backoff_cap_s)
        self._suspects: list[Trouble] = []
        self._known_good: Parcel | None = None

    @property
    def is_settled(self) -> bool:
        """Nothing was refused of which `refused` was not told."""
        return not self._suspects

    def deliver(self, parcel: Parcel) -> str:
        """Empty when all of it is sent; or why it does not go on, and what was not told is still to be sent."""
        waiting = [parcel]
        while waiting:
            if self._patience.stopped():
                return "stopped"
            part = waiting.pop()
            match self._outcome_of(part):
                case Accepted():
                    self._settle(part)
                    self._accepted(part)
                case Refused() if part.records > 1:
                    first, second = part.halves()
                    waiting += [second, first]
                case Refused(reason=reason):
                    self._suspects.append(Trouble(part.place, reason))
                    later = waiting[0] if waiting else None
                    if len(self._suspects) >= _SUSPECTS_MAX and (left := self.settle(later)):
                        return left
                case Unavailable(reason=reason):
                    return reason
        return ""

    def settle(self, later: Parcel | None = None) -> str:
        """Ask with a record that was accepted before, else a later one, whether it is the refused ones that are bad.

        Empty when nothing is unsettled any more, or why something is.
        """
        if not self._suspects:
            return ""
        asked = self._known_good or later
        if asked is not None:
            asked = _last_record_of(asked)
            if isinstance(self._outcome_of(asked), Accepted):
                self._settle(asked)
                return ""
        (file, line), said = self._suspects[0]
        return f"{len(self._suspects)} records were refused and nothing accepted since, from {file}:{line} on: {said}"

    def _settle(self, accepted: Parcel) -> None:
        self._known_good = accepted
        if self._suspects:
            self._refused(self._suspects)
            self._suspects = []

    def _outcome_of(self, part: Parcel) -> ExportOutcome:
        """One outcome that stands: an endpoint that is away is waited for as long as there is patience."""
        deadline = None
        timeouts = 0
        while True:
            outcome = self._try(part)
            if not isinstance(outcome, Unavailable):
                self._backoff.succeeded()
                return outcome
            timeouts = timeouts + 1 if outcome.cause is UnavailableFor.TIMEOUT else 0
            if timeouts >= _TIMEOUTS_BEFORE_HALVING and part.records > 1:
                return Refused(outcome.reason, RefusedFor.SIZE)
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


def _last_record_of(parcel: Parcel) -> Parcel:
    while parcel.records > 1:
        _, parcel = parcel.halves()
    return parcel
