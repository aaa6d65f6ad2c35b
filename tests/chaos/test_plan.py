"""The plan: what the seed decides, and that the long form hurts every role often enough."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.chaos.plan import SHIPPERS, WRITERS, Act, Role, count, plan

SEEDS = range(200)
ENDS = {Act.KILL: Act.START, Act.OUTAGE: Act.START, Act.LEAVE: Act.START, Act.HANG: Act.RESUME, Act.FILL: Act.FREE}


def test_the_seed_alone_decides() -> None:
    assert plan(7, 60) == plan(7, 60)
    assert plan(7, 60) != plan(8, 60)


@pytest.mark.parametrize("role", [Role.WRITER, Role.SHIPPER, Role.COLLECTOR])
def test_ten_minutes_have_fifty_kills_of_each_role(role: Role) -> None:
    assert min(count(plan(seed, 600)[role], Act.KILL, Act.OUTAGE) for seed in SEEDS) >= 50


def test_a_minute_has_every_kind_of_fault() -> None:
    for seed in SEEDS:
        steps = plan(seed, 60)
        assert all(count(steps[role], Act.KILL) for role in (Role.WRITER, Role.SHIPPER, Role.COLLECTOR))
        assert count(steps[Role.SHIPPER], Act.HANG)
        assert count(steps[Role.DISK], Act.FILL)


def test_every_fault_is_over_before_the_next_one_of_its_role_and_before_the_end() -> None:
    for seed in SEEDS:
        for steps in plan(seed, 60).values():
            assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
            assert all(0 < step.at_s <= 60 for step in steps)
            for begin, end in zip(steps[::2], steps[1::2], strict=True):
                assert ENDS[begin.act] is end.act
                assert begin.index == end.index


def test_every_writer_and_every_shipper_has_its_turn() -> None:
    seen: dict[Role, set[int]] = defaultdict(set)
    for role, steps in plan(1, 600).items():
        seen[role] |= {step.index for step in steps}
    assert seen == {
        Role.WRITER: set(range(WRITERS)),
        Role.SHIPPER: set(range(SHIPPERS)),
        Role.COLLECTOR: {0},
        Role.DISK: {0},
    }
