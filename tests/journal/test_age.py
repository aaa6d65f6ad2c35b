"""No clock that can be set makes anything old."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.journal.ages import Ages, Moment, now
from tests.journal.retaining import DAY_NS, Clocks

steps = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(0, 40)),
        st.tuples(st.just("jump"), st.floats(-4000, 4000)),
        st.tuples(st.just("reboot"), st.floats(-4000, 4000)),
    ),
    max_size=20,
)


@given(steps=steps)
def test_age_is_never_more_than_the_time_that_passed_and_a_day_for_each_boot(steps: list[tuple[str, float]]) -> None:
    clocks, ages, passed, boots = Clocks(), Ages(), 0.0, 0
    ages.advance(clocks())
    ages.note("s", 1)
    for kind, days in steps:
        match kind:
            case "pass":
                clocks.pass_days(days)
                passed += days
            case "jump":
                clocks.jump_days(days)
            case _:
                clocks.reboot(off_days=days)
                boots += 1
        ages.advance(clocks())

    ((age_ns, _, _),) = ages.by_age()
    assert age_ns <= (passed + boots) * DAY_NS + 1000
    assert age_ns >= sum(days for kind, days in steps if kind == "pass") * DAY_NS * (not boots) - 1000


def test_time_counts_while_nobody_looks_and_not_by_the_wall_clock(tmp_path: Path) -> None:
    path, clocks, ages = tmp_path / "state", Clocks(), Ages()
    ages.advance(clocks())
    ages.note("s", 1)
    ages.store(path, mode=0o600)
    clocks.pass_days(20)
    clocks.jump_days(-365)

    again = Ages.read(path)
    again.advance(clocks())

    assert again.by_age() == [(20 * DAY_NS, "s", 1)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_machine_that_was_off_for_a_night_grows_older_by_the_night_and_by_no_more_than_a_day() -> None:
    clocks, ages = Clocks(), Ages()
    ages.advance(clocks())
    ages.note("s", 1)
    clocks.reboot(off_days=0.5)
    ages.advance(clocks())
    assert ages.by_age() == [(DAY_NS // 2, "s", 1)]

    clocks.reboot(off_days=365)
    ages.advance(clocks())

    assert ages.by_age() == [(DAY_NS * 3 // 2, "s", 1)]


def test_two_hosts_that_look_in_turn_with_clocks_that_differ_make_nothing_older_than_it_is() -> None:
    one, other, ages = Clocks(), Clocks(), Ages()
    other.boots = 77
    other.boottime_ns = 900 * DAY_NS
    other.jump_days(0.25)
    ages.advance(one())
    ages.note("s", 1)

    for _ in range(100):
        for clocks in (one, other):
            clocks.pass_days(0.01)
        ages.advance(one())
        ages.advance(other())

    ((age_ns, _, _),) = ages.by_age()
    assert DAY_NS * 0.99 <= age_ns <= DAY_NS * 1.3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lived_ns":1}', b"\xff\xfe", b'{"boots":3}'])
def test_a_state_that_cannot_be_read_begins_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)

    assert Ages.read(tmp_path / "state") == Ages()


def test_the_state_knows_a_bounded_number_of_boots() -> None:
    ages, clocks = Ages(), Clocks()
    for _ in range(100):
        clocks.reboot(off_days=0.1)
        ages.advance(clocks())

    assert len(ages.boots) == 16
    assert f"boot-{clocks.boots}" in ages.boots


def test_the_clock_of_the_kernel_goes_on() -> None:
    before, after = now(), now()

    assert isinstance(before, Moment)
    assert after.boottime_ns >= before.boottime_ns > 0
    assert after.boot_id == before.boot_id
