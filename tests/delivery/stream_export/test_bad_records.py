"""Only a record that is refused alone, while others are accepted, is set aside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from otel_audit.delivery.stream_export import Moved
from otel_audit.journal.journal import Journal
from otel_audit.journal.stream import Limits
from tests.delivery.audited_server import AuditedServer
from tests.delivery.stream_export.exporting import BAD_REQUEST, Clock, Open, quarantine_of, refuses, run, write
from tests.journal.writing import a_journal
from tests.servers.otlp_server import Answer, partial_success


def test_one_bad_record_among_a_thousand_is_the_only_one_set_aside(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("613")
    write(journal, *range(1000))
    export = exporting(journal)

    run(export, clock)

    assert server.accepted == ["header", *(str(number) for number in range(1000) if number != 613)]
    progress = export.progress
    assert (progress.counts.exported, progress.counts.quarantined, progress.counts.system) == (999, 1, 1)
    (entry,) = quarantine_of(export)
    assert (entry.first_seq, entry.last_seq) == (615, 615)  # the header is number 1
    assert entry.reason == "400 Bad Request: bad record"


def test_a_partial_success_is_followed_to_the_record_that_was_rejected(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("3", answer=partial_success(1, "no such tenant"))
    write(journal, *range(8))
    export = exporting(journal)

    run(export, clock)

    (entry,) = quarantine_of(export)
    assert (entry.first_seq, entry.last_seq) == (5, 5)
    assert entry.reason == "1 of 1 records rejected: no such tenant"
    assert export.progress.counts.exported == 7


@pytest.mark.slow
def test_a_server_that_refuses_everything_quarantines_nothing(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: BAD_REQUEST
    write(journal, *range(300))
    export = exporting(journal)

    for _ in range(20):
        export.step()
        clock.now += 120
    assert export.progress.counts.quarantined == 0
    assert export.progress.position.seq == 0
    assert export.blocked == "400 Bad Request: bad record"

    server.judge = lambda names: None
    run(export, clock)
    assert export.progress.counts.exported == 300
    assert export.progress.counts.quarantined == 0


def test_a_short_stream_that_is_refused_as_a_whole_waits(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: BAD_REQUEST
    write(journal, "a", "b")
    export = exporting(journal)

    for _ in range(10):
        export.step()
        clock.now += 120

    assert (export.progress.counts.quarantined, export.progress.position.seq) == (0, 0)
    assert export.blocked


@pytest.mark.parametrize("batch_count", [512, 40])
def test_a_long_row_of_bad_records_does_not_stop_the_good_ones_behind_it(
    batch_count: int, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    bad = [f"bad-{number}" for number in range(100)]
    server.judge = refuses("header", *bad)
    write(journal, *bad, "good")
    export = exporting(journal, batch_count=batch_count)

    run(export, clock)

    assert set(server.accepted) == {"good"}
    assert (export.progress.counts.exported, export.progress.counts.quarantined, export.progress.counts.system) == (
        1,
        100,
        1,
    )
    (entry,) = quarantine_of(export)
    assert (entry.first_seq, entry.last_seq) == (1, 101)


def test_good_records_in_a_later_segment_are_found_behind_a_long_row_of_bad_ones(
    tmp_path: Path, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=20_000))
    bad = [f"bad-{number}" for number in range(100)]
    server.judge = lambda names: BAD_REQUEST if set(names) != {"good"} else None
    write(journal, *bad, *["good"] * 5)
    export = exporting(journal, batch_count=40)

    for _ in range(20):
        export.step()
        clock.now += 120

    journal.close()
    assert len(list(tmp_path.glob("*-*.jsonl"))) > 1
    assert export.progress.counts.quarantined == 100


@pytest.mark.slow
def test_a_server_that_gives_each_record_a_reason_of_its_own_does_not_fill_the_cursor(
    tmp_path: Path, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    def judge(names: Sequence[str]) -> Answer | None:
        return None if set(names) == {"good"} else Answer(400, f"{names[0]} has no tenant".encode())

    server.judge = judge
    write(journal, *range(300), "good")
    export = exporting(journal)
    (cursor,) = tmp_path.glob("*.cursor")
    before = cursor.stat().st_size

    run(export, clock)

    assert export.progress.counts.quarantined == 300
    reasons = [each.reason.removeprefix("400 Bad Request: ") for each in quarantine_of(export)]
    assert reasons == ["header has no tenant", *(f"{number} has no tenant" for number in range(300))]
    assert cursor.stat().st_size == before


def test_a_bad_record_at_the_very_end_is_settled_by_the_next_line(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("last")
    write(journal, "a", "last")
    export = exporting(journal)
    for _ in range(3):
        export.step()
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (1, 0)
    assert export.blocked

    write(journal, "b")
    run(export, clock)

    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (2, 1)
    assert not export.blocked
    assert server.accepted == ["header", "a", "b"]


def test_a_bad_record_that_no_line_follows_is_settled_by_a_copy_of_the_last_that_was_accepted(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("last")
    write(journal, "a", "last")
    export = exporting(journal)

    run(export, clock)

    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (1, 1)
    assert server.accepted == ["header", "a", "a"]
    assert server.batches[-3:] == [["last"], ["a"], ["last"]]


@pytest.mark.parametrize(
    ("batch_count", "and_header"),
    [(512, []), (40, []), (512, ["header"]), (64, ["header"]), (20, ["header"])],
    ids=[
        "one taken before",
        "one taken before, short batches",
        "none taken before",
        "none taken before, short batches",
        "none taken before, a row longer than a batch",
    ],
)
def test_good_records_between_a_row_of_bad_ones_and_a_bad_last_one_arrive(
    batch_count: int, and_header: list[str], journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    bad = [f"bad-{number}" for number in range(40)]
    good = [f"good-{number}" for number in range(100)]
    server.judge = refuses(*and_header, *bad, "last")
    write(journal, *bad, *good, "last")
    export = exporting(journal, batch_count=batch_count)

    run(export, clock)

    assert set(good) <= set(server.accepted)
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (100, 41)


@pytest.mark.parametrize("more", [0, 1, 2, 5, 8, 9, 30, 60, 65])
def test_an_endpoint_that_refuses_everything_for_a_while_costs_no_record(
    more: int, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    answers_left = iter(range(more))
    server.judge = lambda names: BAD_REQUEST if next(answers_left, None) is not None else None
    write(journal, *range(75))
    export = exporting(journal)

    run(export, clock)

    assert set(server.accepted) == {"header", *map(str, range(75))}
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (75, 0)
    assert not export.progress.blocked


def test_a_bad_record_at_the_end_is_settled_by_what_another_stream_delivers(
    tmp_path: Path, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("last")
    write(journal, "last")
    export = exporting(journal)
    export.step()
    other = a_journal(tmp_path / "other")
    write(other, "b")
    assert exporting(other).step() == Moved(full=False)

    export.step()

    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (0, 1)
    assert export.progress.position.seq == 2
    other.close()


def test_a_row_of_bad_records_does_not_keep_other_streams_waiting(
    tmp_path: Path, journal: Journal, server: AuditedServer, exporting: Open
) -> None:
    bad = [f"bad-{number}" for number in range(500)]
    server.judge = refuses(*bad)
    write(journal, *bad)
    write(other := a_journal(tmp_path / "other"), "new")
    export = exporting(journal)

    assert export.step() == Moved(full=True)
    assert len(server.requests) < 200
    assert exporting(other).step() == Moved(full=False)

    assert "new" in server.accepted
    assert export.progress.counts.quarantined < 100
    other.close()


def test_a_line_from_which_no_record_can_be_built_is_the_only_one_set_aside(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, *range(10))
    journal.append("odd", b'{"event_type":5}', time.time_ns(), time.time_ns())
    write(journal, *range(10, 20))
    export = exporting(journal)

    run(export, clock)

    assert server.accepted == ["header", *map(str, range(20))]
    (entry,) = quarantine_of(export)
    assert (entry.first_seq, entry.last_seq) == (12, 12)
    assert "event_type" in entry.reason
