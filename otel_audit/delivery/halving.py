"""Find the records that an endpoint refuses, and send all others: for the streams of a journal and for replays.

A part that is refused is halved until one record stands alone. That record is a suspect, and no more: the endpoint may
refuse everything for a while. It is given up only when the endpoint has accepted another record since, and refused this
one alone once more after that. Where nothing else is accepted, a record is asked with, the last one that the endpoint
took first: a copy is the price.

Source: the outcome table of docs/delivery.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, Protocol, Self, TypeVar

from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, RefusedFor, Unavailable, UnavailableFor

__all__ = ["Endpoint", "Halving", "Part", "Repetition", "Stuck", "Suspect", "TooLarge"]

# With so many and nothing accepted in between, it is asked whether it is the records: an endpoint that refuses
# everything is not sent a whole journal one by one.
_SUSPECTS_MAX: Final = 32
_FAILURES_BEFORE_HALVING: Final = 3
_SERVER_ERROR_PATIENCE_S: Final = 600.0


class Part(Protocol):
    """Records that go out in one request: at least one."""

    @property
    def records(self) -> int:
        """How many there are."""

    def halves(self) -> tuple[Self, Self]:
        """Two parts, in order, of one that has more than one record."""


_P = TypeVar("_P", bound=Part)


class Endpoint(Protocol[_P]):
    """Where parts go."""

    @property
    def accepted(self) -> int:
        """How many parts it has ever taken."""

    @property
    def last_accepted(self) -> _P | None:
        """The last part that it took; None if there was none."""

    def send(self, part: _P) -> ExportOutcome:
        """Send one request."""


@dataclass(frozen=True, slots=True, eq=False)  # each is itself: to compare the bytes of their lines takes long
class Suspect(Generic[_P]):
    """A record that was refused alone. `accepted_before`: how many parts the endpoint had taken by then."""

    part: _P
    reason: str
    about: RefusedFor
    accepted_before: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """Records were refused alone, and nothing that could be asked with was accepted since."""

    reason: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A part with so many records was too much for one request."""

    reason: str
    records: int


class Repetition:
    """Remembers failures that come back: they may be of a batch that is too much, or of one record that breaks it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_a_row = 0
        self._server_error_since: float | None = None

    def judged(self, outcome: ExportOutcome, records: int) -> ExportOutcome:
        """Return the outcome, or a refusal in its place when it came back too often."""
        if not isinstance(outcome, Unavailable):
            self._in_a_row = 0
            return outcome
        if outcome.cause in (UnavailableFor.TIMEOUT, UnavailableFor.OVERLOAD):
            self._in_a_row += 1
            if self._in_a_row >= _FAILURES_BEFORE_HALVING and records > 1:
                self._in_a_row = 0
                return Refused(outcome.reason, RefusedFor.SIZE)
        elif outcome.cause is UnavailableFor.SERVER_ERROR:
            now = self._clock()
            self._server_error_since = self._server_error_since or now
            if now - self._server_error_since >= _SERVER_ERROR_PATIENCE_S:
                return Refused(outcome.reason, RefusedFor.SERVER_ERROR)
        return outcome

    def forget_server_errors(self) -> None:
        """Begin anew: the server takes whole batches again."""
        self._server_error_since = None


class Halving(Generic[_P]):
    """Delivers parts to an endpoint. Each record is accepted, or refused twice alone, or stays a suspect. One thread.

    `accepted` is told of each part that is taken, also of a suspect that turns out to be good: the order is not that of
    the records. `suspected` is told of each suspect, `refused` of each that is given up, both at once. `newest` gives a
    record behind the one it is given, to ask with. `judged` may make a refusal of a failure. With `stops_at_size`
    the caller sends less at a time when a part is too large; else it is halved here.
    """

    def __init__(
        self,
        endpoint: Endpoint[_P],
        *,
        accepted: Callable[[_P], None],
        refused: Callable[[Suspect[_P]], None],
        suspected: Callable[[Suspect[_P]], None] = lambda suspect: None,
        newest: Callable[[_P], _P | None] = lambda after: None,
        judged: Callable[[ExportOutcome, int], ExportOutcome] = lambda outcome, records: outcome,
        stops_at_size: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._accepted = accepted
        self._refused = refused
        self._suspected = suspected
        self._newest = newest
        self._judged = judged
        self._stops_at_size = stops_at_size
        self._suspects: list[Suspect[_P]] = []

    @property
    def suspects(self) -> Sequence[Suspect[_P]]:
        """The records that were refused alone and of which nothing is certain yet, in order."""
        return self._suspects

    @property
    def is_full(self) -> bool:
        """Return True if there are so many suspects that nothing more is sent before some of them are settled."""
        return len(self._suspects) >= _SUSPECTS_MAX

    def forget(self) -> None:
        """Drop the suspects: they are sent again with what follows them."""
        self._suspects = []

    def deliver(self, part: _P) -> TooLarge | Unavailable | Stuck | None:
        """Send a part, in halves where it is refused. None: each of its records is accepted, given up, or a suspect."""
        waiting = [part]
        while waiting:
            stopped = self._advance(waiting.pop(), waiting)
            if stopped is not None:
                return stopped
        return None

    def _advance(self, part: _P, waiting: list[_P]) -> TooLarge | Unavailable | Stuck | None:
        match self._send(part):
            case Accepted():
                self._accepted(part)
                return self.settle()
            case Refused(reason=reason, about=RefusedFor.SIZE) if part.records > 1 and self._stops_at_size:
                return TooLarge(reason, part.records)
            case Refused() if part.records > 1:
                first, second = part.halves()
                waiting += [second, first]
            case Refused(reason=reason, about=about):
                self._suspects.append(suspect := Suspect(part, reason, about, self._endpoint.accepted))
                self._suspected(suspect)
                if self.is_full:
                    return self.ask(reversed(waiting))
            case Unavailable() as away:
                return away
        return None

    def settle(self) -> Unavailable | None:
        """Send each suspect once more since which the endpoint accepted something, and tell what became of it."""
        while due := [each for each in self._suspects if each.accepted_before < self._endpoint.accepted]:
            suspect = due[0]
            match self._send(suspect.part):
                case Accepted():
                    self._suspects.remove(suspect)
                    self._accepted(suspect.part)
                case Unavailable(cause=cause) as away if not (
                    cause is UnavailableFor.SERVER_ERROR and suspect.about is RefusedFor.SERVER_ERROR
                ):
                    # What the endpoint accepts when it is back will tell.
                    accepted = self._endpoint.accepted
                    self._suspects = [replace(each, accepted_before=accepted) for each in self._suspects]
                    return away
                case _:
                    self._suspects.remove(suspect)
                    self._refused(suspect)
        return None

    def ask(self, later: Iterable[_P] = ()) -> Unavailable | Stuck | None:
        """Settle the suspects by asking with another record whether the endpoint accepts any. None: they are settled.

        A record of `later` that is accepted here is sent once more in its turn.
        """
        if not self._suspects:
            return None
        for record in self._to_ask_with(later):
            match self._send(record):
                case Accepted():
                    return self.settle()
                case Unavailable() as away:
                    return away
        return Stuck(self._suspects[0].reason)

    def _to_ask_with(self, later: Iterable[_P]) -> Iterator[_P]:
        """One that was taken before, the newest one, and the last ones of what waits, which lie ever further ahead.

        No single one will do: the store may find the first too old by now, and the newest may be bad as well.
        """
        if self._endpoint.last_accepted is not None:
            yield _last_record_of(self._endpoint.last_accepted)
        newest = self._newest(self._suspects[-1].part)
        if newest is not None:
            yield newest
        for part in later:
            yield _last_record_of(part)

    def _send(self, part: _P) -> ExportOutcome:
        return self._judged(self._endpoint.send(part), part.records)


def _last_record_of(part: _P) -> _P:
    while part.records > 1:
        _, part = part.halves()
    return part
