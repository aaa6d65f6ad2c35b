"""A destination that fails is left alone for longer and longer, never for the same time by all, and never for ever."""

from __future__ import annotations

import pytest

from otel_audit.delivery.destination import Backoff

CAP_S = 60.0


def waits(backoff: Backoff, failures: int) -> list[float]:
    return [backoff.failed() for _ in range(failures)]


def test_each_failure_doubles_the_wait_up_to_the_cap() -> None:
    most = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]

    many = [waits(Backoff(CAP_S), len(most)) for _ in range(200)]

    for place, cap_s in enumerate(most):
        at_place = [each[place] for each in many]
        assert cap_s / 2 <= min(at_place)
        assert max(at_place) <= cap_s


def test_a_hundred_processes_do_not_come_back_in_the_same_moment() -> None:
    at_once = [waits(Backoff(CAP_S), 8)[-1] for _ in range(100)]

    assert max(at_once) - min(at_once) > 20  # over 30 seconds: all within 20 is a chance of 10**-16


def test_a_success_begins_anew() -> None:
    backoff = Backoff(CAP_S)
    waits(backoff, 10)

    backoff.succeeded()

    assert 0.25 <= backoff.failed() <= 0.5


@pytest.mark.parametrize(("asked_s", "waited_s"), [(7.0, 7.0), (86_400.0, 300.0), (0.0, 0.5), (-3.0, 0.5)])
def test_what_the_destination_asks_for_comes_first_within_bounds(asked_s: float, waited_s: float) -> None:
    backoff = Backoff(CAP_S)
    waits(backoff, 5)

    assert backoff.failed(asked_s) == waited_s


def test_a_cap_below_the_first_wait_is_kept() -> None:
    assert max(waits(Backoff(0.2), 5)) <= 0.2
