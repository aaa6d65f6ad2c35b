"""Find the records that an endpoint refuses, and send all others, for the streams of a journal and for replays.

A refused part is halved until one record stands alone. That record is only a suspect, since the endpoint may refuse
everything for a while. It is given up once the endpoint has accepted another record and then refused this one alone
again. If no other record is accepted, a probe is sent, beginning with the record that the endpoint accepted last. The
price is a copy of it.

A record is given up for its size, or for lack of an answer, only if it is larger than each record that the endpoint has
accepted. An endpoint with too much to do answers in the same way. If the endpoint refuses the largest of them for its
size too, its limit was lowered, and they no longer count. A record that gets no answer is given up later than others,
since an endpoint that is slow or restarts gives none either.

A backlog older than its store allows would take three requests per record. It is settled in runs: see `_is_run`.

Source: the outcome table of docs/delivery.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, Generic, Protocol, Self, TypeGuard, TypeVar

import msgspec
from msgspec.structs import replace

from otel_audit.delivery.outcomes import (
    Accepted,
    ExportOutcome,
    Fault,
    Refused,
    RefusedFor,
    Unavailable,
    UnavailableFor,
)

__all__ = ["Endpoint", "Halving", "Part", "Stuck", "Suspect", "TooLarge"]

# After this many suspects without an accepted record in between, a probe finds out whether the records are at fault.
# Otherwise a whole journal would go, one record at a time, to an endpoint that refuses everything.
_SUSPECTS_MAX: Final = 32
# A part may be a run only after this many neighbours in a row were refused alone. Below the minimum length, the samples
# of a part would cost as much as its halves.
_ALONE_BEFORE_RUNS: Final = 4
_RUN_MIN_RECORDS: Final = 8
_FAILURES_BEFORE_HALVING: Final = 3
# A record is given up for lack of an answer after this many more, each right after a probe that was accepted. A server
# that is killed with the record, or is slow, fails to answer one of the probes, and then everything starts over.
_UNANSWERED_BEFORE_GIVING_UP: Final = 3
_REFUSALS_OF_LOWER_LIMIT: Final = 3
_UNANSWERED: Final = (UnavailableFor.TIMEOUT, UnavailableFor.OVERLOAD)
_SERVER_ERROR_PATIENCE_S: Final = 600.0


class Part(Protocol):
    """The records of one request, at least one."""

    @property
    def records(self) -> int:
        """The number of records."""

    @property
    def largest_bytes(self) -> int:
        """The size of its largest record."""

    def halves(self) -> tuple[Self, Self]:
        """Split a part of more than one record into two, in order."""

    def samples(self) -> Sequence[Self]:
        """Return some of the records, each alone, beginning with the newest of the part.

        Return none if their times are unknown. Then they cannot form a run.
        """


_P = TypeVar("_P", bound=Part)


class Endpoint(Protocol[_P]):
    """The receiver of parts."""

    @property
    def accepted(self) -> int:
        """The number of parts that it has ever accepted."""

    @property
    def last_accepted(self) -> _P | None:
        """The last part that it accepted, or None."""

    @property
    def largest_accepted(self) -> _P | None:
        """A part with the largest record that it has accepted since `forget_largest`, or None."""

    def forget_largest(self) -> None:
        """Forget that part, because the endpoint refuses its record now: its limit was lowered."""

    def send(self, part: _P) -> ExportOutcome:
        """Send one request."""


# Compared by identity: comparing the bytes of their lines is slow.
class Suspect(msgspec.Struct, Generic[_P], frozen=True, eq=False):
    """A record that was refused alone, or a run of records that was refused.

    `accepted_before` is the number of parts that the endpoint had accepted by then. It is None for a piece of a broken
    run, which has not been sent by itself yet. `unanswered` counts the missing answers since it became a suspect, each
    after the endpoint had accepted something.
    """

    part: _P
    reason: str
    about: RefusedFor
    accepted_before: int | None
    unanswered: int = 0


class Stuck(msgspec.Struct, frozen=True):
    """The result if records were refused alone and no probe was accepted since."""

    reason: str


class TooLarge(msgspec.Struct, frozen=True):
    """The result if a part was too large for one request, with its number of records."""

    reason: str
    records: int


class _Repetition:
    """The repeated failures of a part, which may be due to its size, or to one record that breaks the server."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_a_row = 0
        self._server_error_since: float | None = None

    def judged(self, outcome: ExportOutcome, records: int, *, may_be_too_large: bool) -> ExportOutcome:
        """Return the outcome, or a refusal instead if the same failure came too often."""
        if not isinstance(outcome, Unavailable):
            self._in_a_row = 0
            return outcome
        if outcome.cause in _UNANSWERED:
            self._in_a_row += 1
            if self._in_a_row >= _FAILURES_BEFORE_HALVING and may_be_too_large:
                self._in_a_row = 0
                return Refused(outcome.reason, RefusedFor.SIZE if records > 1 else RefusedFor.UNANSWERED)
        elif outcome.cause is UnavailableFor.SERVER_ERROR:
            now = self._clock()
            self._server_error_since = self._server_error_since or now
            if now - self._server_error_since >= _SERVER_ERROR_PATIENCE_S:
                return Refused(outcome.reason, RefusedFor.SERVER_ERROR)
        return outcome

    def forget_server_errors(self) -> None:
        """Forget the server errors, since the server accepts whole batches again."""
        self._server_error_since = None


class Halving(Generic[_P]):
    """Deliver parts to an endpoint. Each record is accepted, or refused twice, or stays a suspect. For one thread.

    The callbacks: `accepted` gets each accepted part, in any order, since a suspect may turn out to be good later.
    `suspected` gets each suspect, and `refused` each one that is given up, both at once. `ahead` takes a part and
    returns later records to probe with: the newest, then others. `outlasted` gets each answer and returns the final
    outcome, or None if it has waited for the endpoint and the part is to be sent again.

    With `stops_at_size`, a part that is too large is returned to the caller, who sends less at a time. Otherwise it is
    halved here.
    """

    def __init__(
        self,
        endpoint: Endpoint[_P],
        *,
        accepted: Callable[[_P], None],
        refused: Callable[[Suspect[_P]], None],
        suspected: Callable[[Suspect[_P]], None] = lambda suspect: None,
        ahead: Callable[[_P], Iterable[_P]] | None = None,
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
        self._waiting: list[_P] = []  # the next one comes last
        self._refused_alone = 0  # in a row, each for a reason that may apply to its neighbours too

    @property
    def suspects(self) -> Sequence[Suspect[_P]]:
        """The records that were refused but are not settled yet, in order."""
        return self._suspects

    @property
    def is_full(self) -> bool:
        """True if there are so many suspects that some must be settled before anything more is sent."""
        return len(self._suspects) >= _SUSPECTS_MAX or any(each.part.records > 1 for each in self._suspects)

    @property
    def is_under_way(self) -> bool:
        """True if a piece of the current part was not sent yet."""
        return bool(self._waiting)

    def forget(self) -> None:
        """Drop the suspects and the current part. The caller sends them again with the records that follow."""
        self._suspects, self._waiting = [], []

    def deliver(self, part: _P) -> TooLarge | Unavailable | Stuck | None:
        """Send a part, in halves if it is refused. Return None once each record is accepted, given up or a suspect."""
        self.begin(part)
        while self._waiting:
            stopped = self.go_on()
            if stopped is not None:
                return stopped
        return None

    def begin(self, part: _P) -> None:
        """Begin with a part, of which each `go_on` sends a piece."""
        self._whole, self._waiting = part, [part]

    def go_on(self) -> TooLarge | Unavailable | Stuck | None:
        """Send the next piece of the current part."""
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
        # An endpoint that is away must not look as if it moved on, so a probe finds that out at once.
        return self.ask() if self.is_full or about is RefusedFor.UNANSWERED else None

    def _is_run(self, part: _P) -> Unavailable | bool:
        """Return True if every record of a refused part can be considered refused.

        Either the endpoint said that it rejected every one of them, or that they are too old: if a record is too old,
        so is every older one. In addition, the samples, including the newest record, must be refused alone for the same
        kind of reason, as several of their neighbours just were. A sample that is accepted is sent again in its turn.
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
        """Send each suspect again, if the endpoint has accepted something since, and report the result."""
        while due := [each for each in self._suspects if self._is_due(each)]:
            suspect = due[0]
            match self._send(suspect.part):
                case Accepted():
                    self._suspects.remove(suspect)
                    self._take(suspect.part)
                case Unavailable() as away if not self._is_same(away, suspect):
                    return self._come_back_later(away)
                case outcome:
                    each = isinstance(outcome, Refused) and outcome.each
                    stopped = self._refused_again(suspect, outcome.reason, each)
                    if stopped is not None:
                        return self._come_back_later(stopped)
        return None

    def _is_same(self, away: Unavailable, suspect: Suspect[_P]) -> bool:
        """Return True if a suspect was not answered again in the way that made it one."""
        if away.cause is UnavailableFor.SERVER_ERROR:
            return suspect.about is RefusedFor.SERVER_ERROR
        return suspect.about is RefusedFor.UNANSWERED and away.cause in _UNANSWERED and self._is_largest(suspect.part)

    def _is_due(self, suspect: Suspect[_P]) -> bool:
        return suspect.accepted_before is None or suspect.accepted_before < self._endpoint.accepted

    def _come_back_later(self, away: Unavailable) -> Unavailable:
        """Postpone the suspects until the endpoint is back and has accepted something."""
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
                case _:  # not a run after all, so its records are sent by themselves
                    self._put(suspect, *(Suspect(half, reason, suspect.about, None) for half in part.halves()))
        elif is_new:
            self._put(suspect, Suspect(part, reason, suspect.about, self._endpoint.accepted))
        elif suspect.about is RefusedFor.UNANSWERED and suspect.unanswered + 1 < _UNANSWERED_BEFORE_GIVING_UP:
            accepted, unanswered = self._endpoint.accepted, suspect.unanswered + 1
            self._put(suspect, replace(suspect, accepted_before=accepted, unanswered=unanswered))
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
        """Probe with other records until the endpoint accepts one, then settle the suspects. Return None once settled.

        A probe that was not delivered before is sent again in its turn.
        """
        while self._suspects:
            stopped = self._probe() or self.settle()
            if stopped is not None or not any(each.unanswered for each in self._suspects):
                return stopped
        return None

    def _probe(self) -> Unavailable | Stuck | None:
        """Send other records until the endpoint accepts one."""
        for record in self._to_ask_with():
            match self._send(record):
                case Accepted():
                    return None
                case Unavailable() as away:
                    return away
        return Stuck(self._suspects[0].reason)

    def _to_ask_with(self) -> Iterator[_P]:
        """Yield records to probe with: one accepted before, the newest one, the last of each waiting part, and others.

        A single probe would not do. The store may find the first one too old by now, and the newest may be bad too.
        """
        if self._endpoint.last_accepted is not None:
            yield _last_record_of(self._endpoint.last_accepted)
        ahead = iter(() if self._ahead is None else self._ahead(self._suspects[-1].part))
        yield from islice(ahead, 1)
        for part in reversed(self._waiting):
            yield _last_record_of(part)
        yield from ahead

    def _take(self, part: _P) -> None:
        if part is self._whole:  # an accepted half does not clear the other one
            self._repetition.forget_server_errors()
        self._accepted(part)

    def _send(self, part: _P) -> ExportOutcome:
        outcome = None
        while outcome is None:
            outcome = self._outlasted(self._judged(self._endpoint.send(part), part))
        return outcome

    def _judged(self, outcome: ExportOutcome, part: _P) -> ExportOutcome:
        may_be_too_large = part.records > 1 or self._is_largest(part)
        if _is_for_size(outcome) and not may_be_too_large:
            may_be_too_large = self._has_lower_limit()
            if not may_be_too_large:
                return Unavailable(f"{outcome.reason} (no larger than what was accepted before)", fault=Fault.BUSY)
        # Without a record to probe with, a suspect could not be told from an endpoint that is away.
        can_probe = part.records > 1 or self._ahead is not None or self._endpoint.last_accepted is not None
        return self._repetition.judged(outcome, part.records, may_be_too_large=may_be_too_large and can_probe)

    def _is_largest(self, part: _P) -> bool:
        largest = self._endpoint.largest_accepted
        return largest is None or part.largest_bytes > largest.largest_bytes

    def _has_lower_limit(self) -> bool:
        """Send the largest accepted record again. If the endpoint refuses it for its size, three times, forget it.

        Of several servers behind one address only some may have the lower limit, and another one takes the record.
        """
        largest = self._endpoint.largest_accepted
        if largest is None:
            return False
        record = _largest_record_of(largest)
        if not all(_is_for_size(self._endpoint.send(record)) for _ in range(_REFUSALS_OF_LOWER_LIMIT)):
            return False
        self._endpoint.forget_largest()
        return True


def _is_for_size(outcome: ExportOutcome) -> TypeGuard[Refused]:
    return isinstance(outcome, Refused) and outcome.about is RefusedFor.SIZE


def _last_record_of(part: _P) -> _P:
    while part.records > 1:
        _, part = part.halves()
    return part


def _largest_record_of(part: _P) -> _P:
    while part.records > 1:
        part = max(part.halves(), key=lambda half: half.largest_bytes)
    return part
