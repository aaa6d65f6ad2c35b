"""Find the records that an endpoint refuses, and send all others: for the streams of a journal and for replays.

A part that is refused is halved until one record stands alone. That record is a suspect, and no more: the endpoint may
refuse everything for a while. It is given up only when the endpoint has accepted another record since, and refused this
one alone once more after that. Where nothing else is accepted, a record is asked with, the last one that the endpoint
took first: a copy is the price.

A backlog that is older than its store allows would take three requests a record. It is settled in runs: see `_is_run`.

Source: the outcome table of docs/delivery.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Generic, Protocol, Self, TypeVar

from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, RefusedFor, Unavailable, UnavailableFor

__all__ = ["Endpoint", "Halving", "Part", "Stuck", "Suspect", "TooLarge"]

# With so many and nothing accepted in between, it is asked whether it is the records: an endpoint that refuses
# everything is not sent a whole journal one by one.
_SUSPECTS_MAX: Final = 32
# So many neighbours are refused alone, one after the other, before a part is taken for a run; and the samples of a
# shorter part would cost as much as its halves.
_ALONE_BEFORE_RUNS: Final = 4
_RUN_MIN_RECORDS: Final = 8
_FAILURES_BEFORE_HALVING: Final = 3
_SERVER_ERROR_PATIENCE_S: Final = 600.0


class Part(Protocol):
    """Records that go out in one request: at least one."""

    @property
    def records(self) -> int:
        """How many there are."""

    def halves(self) -> tuple[Self, Self]:
        """Return two parts, in order, of one that has more than one record."""

    def samples(self) -> Sequence[Self]:
        """Return some of the records, each alone: first the newest, than which no other of the part is newer.

        Empty where their times cannot be told: then no run is made of them.
        """


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
    """A record that was refused alone, or a run of records that was refused.

    `accepted_before`: how many parts the endpoint had taken by then; None for a piece of a run that was not refused
    again: it has not been sent by itself yet.
    """

    part: _P
    reason: str
    about: RefusedFor
    accepted_before: int | None


@dataclass(frozen=True, slots=True)
class Stuck:
    """Records were refused alone, and nothing that could be asked with was accepted since."""

    reason: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A part with so many records was too much for one request."""

    reason: str
    records: int


class _Repetition:
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
    """Delivers parts to an endpoint. Each record is accepted, or refused twice, or stays a suspect. One thread.

    `accepted` is told of each part that is taken, also of a suspect that turns out to be good: the order is not that of
    the records. `suspected` is told of each suspect, `refused` of each that is given up, both at once. `ahead` gives
    records behind the one it is given, to ask with: the newest, then others. `outlasted` is told of each answer and
    returns what stands, or None once it has waited for an endpoint that is away: the part is sent again. With
    `stops_at_size` the caller sends less at a time when a part is too large; else it is halved here.
    """

    def __init__(
        self,
        endpoint: Endpoint[_P],
        *,
        accepted: Callable[[_P], None],
        refused: Callable[[Suspect[_P]], None],
        suspected: Callable[[Suspect[_P]], None] = lambda suspect: None,
        ahead: Callable[[_P], Iterable[_P]] = lambda after: (),
        outlasted: Callable[[ExportOutcome], ExportOutcome | None] = lambda outcome: outcome,
        clock: Callable[[], float] = time.monotonic,
        stops_at_size: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._accepted = accepted
        self._refused = refused
        self._suspected = suspected
        self._ahead = ahead
        self._outlasted = outlasted
        self._repetition = _Repetition(clock)
        self._stops_at_size = stops_at_size
        self._whole: _P | None = None
        self._suspects: list[Suspect[_P]] = []
        self._waiting: list[_P] = []  # the last one is next
        self._refused_alone = 0  # in a row, each for a reason that may be that of its neighbours

    @property
    def suspects(self) -> Sequence[Suspect[_P]]:
        """The records that were refused and of which nothing is certain yet, in order."""
        return self._suspects

    @property
    def is_full(self) -> bool:
        """Return True if there are so many suspects that nothing more is sent before some of them are settled."""
        return len(self._suspects) >= _SUSPECTS_MAX or any(each.part.records > 1 for each in self._suspects)

    @property
    def is_under_way(self) -> bool:
        """Return True if some of the part that was given to `deliver` was not sent yet."""
        return bool(self._waiting)

    def forget(self) -> None:
        """Drop the suspects and what is under way: they are sent again with what follows them."""
        self._suspects, self._waiting = [], []

    def deliver(self, part: _P) -> TooLarge | Unavailable | Stuck | None:
        """Send a part, in halves where it is refused. None: each of its records is accepted, given up, or a suspect."""
        self.begin(part)
        while self._waiting:
            stopped = self.go_on()
            if stopped is not None:
                return stopped
        return None

    def begin(self, part: _P) -> None:
        """Take a part on, of which each `go_on` sends a piece."""
        self._whole, self._waiting = part, [part]

    def go_on(self) -> TooLarge | Unavailable | Stuck | None:
        """Send the next piece of what is under way."""
        part = self._waiting.pop()
        match self._send(part):
            case Accepted():
                self._refused_alone = 0
                self._take(part)
                return self.settle()
            case Refused(reason=reason, about=RefusedFor.SIZE) if part.records > 1 and self._stops_at_size:
                return TooLarge(reason, part.records)
            case Refused(reason=reason, about=about, each=each) if part.records > 1:
                match each and self._is_run(part):
                    case Unavailable() as away:
                        return away
                    case True:
                        return self._suspect(part, reason, about)
                first, second = part.halves()
                self._waiting += [second, first]
            case Refused(reason=reason, about=about, each=each):
                self._refused_alone = self._refused_alone + 1 if each else 0
                return self._suspect(part, reason, about)
            case Unavailable() as away:
                return away
        return None

    def _suspect(self, part: _P, reason: str, about: RefusedFor) -> Unavailable | Stuck | None:
        self._suspects.append(suspect := Suspect(part, reason, about, self._endpoint.accepted))
        self._suspected(suspect)
        return self.ask() if self.is_full else None

    def _is_run(self, part: _P) -> Unavailable | bool:
        """Return True if each record of a part that was refused may be taken for refused.

        Either the endpoint said that it rejected every one of them, or it said that they are too old: a record that is
        older than one that was refused alone for its age is too old as well. The samples, the newest one among them,
        have to be refused alone for the same kind of reason, as several of their neighbours were just before. A sample
        that is accepted is sent once more in its turn.
        """
        if self._refused_alone < _ALONE_BEFORE_RUNS or part.records < _RUN_MIN_RECORDS:
            return False
        samples = part.samples()
        return self._are_refused(samples) if samples else False

    def _are_refused(self, samples: Sequence[_P]) -> Unavailable | bool:
        for sample in samples:
            match self._send(sample):
                case Unavailable() as away:
                    return away
                case Refused(each=True):
                    continue
                case _:
                    return False
        return True

    def settle(self) -> Unavailable | None:
        """Send each suspect once more since which the endpoint accepted something, and tell what became of it."""
        while due := [each for each in self._suspects if self._is_due(each)]:
            suspect = due[0]
            match self._send(suspect.part):
                case Accepted():
                    self._suspects.remove(suspect)
                    self._take(suspect.part)
                case Unavailable(cause=cause) as away if not (
                    cause is UnavailableFor.SERVER_ERROR and suspect.about is RefusedFor.SERVER_ERROR
                ):
                    return self._come_back_later(away)
                case outcome:
                    each = isinstance(outcome, Refused) and outcome.each
                    stopped = self._refused_again(suspect, outcome.reason, each)
                    if stopped is not None:
                        return self._come_back_later(stopped)
        return None

    def _is_due(self, suspect: Suspect[_P]) -> bool:
        return suspect.accepted_before is None or suspect.accepted_before < self._endpoint.accepted

    def _come_back_later(self, away: Unavailable) -> Unavailable:
        """What the endpoint accepts when it is back will tell."""
        accepted = self._endpoint.accepted
        self._suspects = [
            each if each.accepted_before is None else replace(each, accepted_before=accepted) for each in self._suspects
        ]
        return away

    def _refused_again(self, suspect: Suspect[_P], reason: str, each: bool) -> Unavailable | None:
        part, is_new = suspect.part, suspect.accepted_before is None
        if part.records > 1:
            match each and not is_new and self._are_refused(part.samples()[:1]):
                case Unavailable() as away:
                    return away
                case True:
                    self._give_up(suspect)
                case _:  # something else is going on: each record for itself
                    self._put(suspect, *(Suspect(half, reason, suspect.about, None) for half in part.halves()))
        elif is_new:
            self._put(suspect, Suspect(part, reason, suspect.about, self._endpoint.accepted))
        else:
            self._give_up(suspect)
        return None

    def _give_up(self, suspect: Suspect[_P]) -> None:
        self._suspects.remove(suspect)
        self._refused(suspect)

    def _put(self, suspect: Suspect[_P], *instead: Suspect[_P]) -> None:
        place = self._suspects.index(suspect)
        self._suspects[place : place + 1] = instead

    def ask(self) -> Unavailable | Stuck | None:
        """Settle the suspects by asking with another record whether the endpoint accepts any. None: they are settled.

        A record that was not delivered yet and is accepted here is sent once more in its turn.
        """
        if not self._suspects:
            return None
        for record in self._to_ask_with():
            match self._send(record):
                case Accepted():
                    return self.settle()
                case Unavailable() as away:
                    return away
        return Stuck(self._suspects[0].reason)

    def _to_ask_with(self) -> Iterator[_P]:
        """One that was taken before, the newest one, the last ones of what waits, and others that lie further ahead.

        No single one will do: the store may find the first too old by now, and the newest may be bad as well.
        """
        if self._endpoint.last_accepted is not None:
            yield _last_record_of(self._endpoint.last_accepted)
        ahead = iter(self._ahead(self._suspects[-1].part))
        yield from islice(ahead, 1)
        for part in reversed(self._waiting):
            yield _last_record_of(part)
        yield from ahead

    def _take(self, part: _P) -> None:
        if part is self._whole:  # halves that are accepted do not clear the one that is not
            self._repetition.forget_server_errors()
        self._accepted(part)

    def _send(self, part: _P) -> ExportOutcome:
        outcome = None
        while outcome is None:
            outcome = self._outlasted(self._repetition.judged(self._endpoint.send(part), part.records))
        return outcome


def _last_record_of(part: _P) -> _P:
    while part.records > 1:
        _, part = part.halves()
    return part
