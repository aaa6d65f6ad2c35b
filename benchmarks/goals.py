"""What this project wants of its speed, beside what one run found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from benchmarks import call_cost, commands, delivery, loop_lag, middleware, server
from benchmarks.measurement import Series

__all__ = ["Goal", "goals"]

Numbers = Mapping[str, Mapping[str, Series]]


class Goal(NamedTuple):
    """One number that is to be at most, or at least, so much. `found`: None where it could not be measured here."""

    what: str
    found: float | None
    bound: float
    at_most: bool = True

    @property
    def is_met(self) -> bool | None:
        """Return whether it is reached; None where nothing was measured."""
        if self.found is None:
            return None
        return self.found <= self.bound if self.at_most else self.found >= self.bound

    def as_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return {"what": self.what, "found": self.found, "at_most" if self.at_most else "at_least": self.bound}


_SDK: Final = "the OTel SDK with a queue for all events"


def goals(
    *, calls: Numbers, requests: Numbers, served: Numbers, delivered: Numbers, loop: Numbers, ran: Numbers
) -> Iterator[Goal]:
    """Return every goal, each ratio the median of those of the rounds."""
    ours, feast = call_cost.OURS_ROW, call_cost.FEAST_ROW
    yield Goal("a call / Feast's with its file sink", _ratio(calls, ours, feast, call_cost.MEAN_US), 0.75)
    sdk, own = delivery.SDK_ROW, delivery.OURS_ROW
    yield Goal(f"CPU to the acknowledgement / {_SDK}", _ratio(delivered, own, sdk, delivery.CPU_US), 0.40)
    yield Goal(f"events a second / {_SDK}", _ratio(delivered, own, sdk, delivery.PER_SECOND), 2.5, at_most=False)
    yield Goal("share of the events that was lost", delivered[own][delivery.LOST].most, 0.0)
    lag = loop[loop_lag.OURS_ROW][loop_lag.P99_MS].median
    yield Goal(f"p99 of the loop's lag at {loop_lag.PER_SECOND} events a second, ms", lag, 2.0)
    request, helper = middleware.MIDDLEWARE_ROW, middleware.HELPER_ROW
    yield Goal(
        "a request through the middleware / log_http_request", _ratio(requests, request, helper, middleware.US), 1.3
    )
    for row, bound in server.GOALS.items():
        speed = _ratio(served, row, server.ALONE_ROW, server.PER_SECOND)
        yield Goal(f"requests a second {row} / alone", speed, bound, at_most=False)
        yield Goal(f"p99 {row} / alone", _ratio(served, row, server.ALONE_ROW, server.P99_MS), server.P99_GOAL)
    yield Goal(f"{commands.SERVICE_ROW}, CPU seconds", ran[commands.SERVICE_ROW][commands.CPU_S].median, 0.2)
    yield Goal(f"{commands.STATUS_ROW}, CPU seconds", ran[commands.STATUS_ROW][commands.CPU_S].median, 0.2)


def _ratio(numbers: Numbers, one: str, other: str, name: str) -> float | None:
    """Return the median of the rounds' ratios, since what else the machine did in a round touched both."""
    if one not in numbers or other not in numbers:
        return None
    pairs = zip(numbers[one][name].values, numbers[other][name].values, strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)
