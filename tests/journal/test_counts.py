"""The numbers add up: those of one stream over its exporters, and those of a process from one look to the next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otel_audit.journal.counts import Counts, CountsByExporter, Progress, refused_by_any, shared_by_all
from otel_audit.journal.line import Position
from otel_audit.journal.quarantine import Quarantined

numbers = st.integers(0, 1 << 40)
counts = st.builds(Counts, numbers, numbers, numbers, numbers, numbers)


@given(counts, counts)
def test_what_the_ledger_keeps_is_read_back_and_sums_are_of_each_number(one: Counts, other: Counts) -> None:
    assert Counts.of(one.stored()) == one
    assert (one + other).emitted == one.emitted + other.emitted
    assert one + other - other == one
    assert one.by_name()["emitted"] == one.exported + one.pending + one.quarantined + one.dropped


@given(counts)
def test_what_was_pending_is_exported_or_quarantined_and_no_event_comes_or_goes(before: Counts) -> None:
    for after in (before.when_exported(), before.when_refused()):
        assert (after.pending, after.emitted, after.system) == (0, before.emitted, before.system)


def test_what_an_exporter_that_is_ahead_lacks_is_not_exported_by_all() -> None:
    behind = Progress(Position(1, 1000, 10), Counts(exported=9, system=1))
    ahead = Progress(
        Position(1, 1200, 12), Counts(exported=6, system=1)
    )  # five lines were gone, three of the first ten

    assert shared_by_all([behind, ahead]) == Counts(exported=6, dropped=3, system=1)
    assert shared_by_all([behind]) == behind.counts


def test_what_one_exporter_set_aside_is_quarantined_once_as_far_as_all_have_come() -> None:
    behind = Progress(Position(1, 1000, 10), Counts(exported=7, quarantined=3), quarantine=(Quarantined(2, 4, "400"),))
    ranges = (Quarantined(4, 5, "too old"), Quarantined(9, 12, "400"))
    ahead = Progress(Position(1, 1200, 12), Counts(exported=6, quarantined=6), quarantine=ranges)

    assert refused_by_any([behind, ahead]) == [(2, 5), (9, 10)]
    assert shared_by_all([behind, ahead]) == Counts(exported=4, quarantined=6)


def test_a_counter_never_goes_back_and_what_is_pending_is_never_below_nothing() -> None:
    earlier = CountsByExporter(9, {"disk full": 2}, {"otlp": Counts(7, 0, 0, 2)}, {"otlp": 3})
    later = CountsByExporter(8, {}, {"otlp": Counts(1, -1, 0, 2)}, {}, {"otlp"})

    seen = later.after(earlier)

    assert (seen.emitted, seen.dropped, seen.warnings) == (9, {"disk full": 2}, {"otlp": 3})
    assert (seen.exporters["otlp"].exported, seen.exporters["otlp"].pending, seen.blocked) == (7, 0, {"otlp"})
