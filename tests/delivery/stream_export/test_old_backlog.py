"""A backlog that is older than its store allows is settled in runs, while what is new goes out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.delivery.destination import Destination
from otel_audit.journal.journal import Journal
from otel_audit.journal.stream import Limits
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.stream_export.exporting import Clock, Open, export_of, quarantine_of, run, write
from tests.journal.writing import a_journal, event
from tests.servers.otlp_server import Answer, Received, partial_success

DAY_NS = 86_400 * 10**9
WEEK_NS = 7 * DAY_NS


class AgedServer(AuditedServer):
    """A store that takes no record that is older than a week."""

    def __init__(self, says: Callable[[int, int], Answer]) -> None:
        super().__init__()
        self._says = says

    def next_answer(self) -> Answer:
        times = times_in(self.requests[-1])
        old = sum(time_ns < time.time_ns() - WEEK_NS for time_ns in times)
        self.judge = lambda names: self._says(old, len(times)) if old else None
        return super().next_answer()


def times_in(request: Received) -> list[int]:
    message = ExportLogsServiceRequest.FromString(request.body)
    return [
        record.time_unix_nano
        for logs in message.resource_logs
        for scope in logs.scope_logs
        for record in scope.log_records
    ]


def as_loki(old: int, records: int) -> Answer:
    said = (
        "entry for stream '{service_name=\"shop\"}' has timestamp too old: 2026-11-01T00:00:00Z, "
        f"oldest acceptable timestamp is: 2026-11-21T00:00:00Z, total ignored: {old} out of {records}"
    )
    return Answer(400, said.encode(), (("Content-Type", "text/plain"),))


def counted(old: int, records: int) -> Answer:
    return partial_success(old, "Too old data, only last 5 hours data can be ingested")


def write_old(journal: Journal, *names: object, days: float, observed_ns: int | None = None) -> None:
    then_ns = int(time.time_ns() - days * DAY_NS)
    for number, name in enumerate(names):
        journal.append(str(name), event(name), then_ns + number, observed_ns or then_ns + number)


@pytest.mark.slow
@pytest.mark.parametrize("says", [as_loki, counted], ids=["400", "partial success"])
def test_a_backlog_older_than_the_store_allows_is_set_aside_in_a_few_requests_for_each_batch(
    says: Callable[[int, int], Answer], tmp_path: Path, clock: Clock
) -> None:
    # Its lines are said to be observed a month ago: by age each look of its own, once a second, would begin a segment.
    journal = a_journal(tmp_path, limits=Limits(segment_age_s=math.inf))
    write_old(journal, *range(5000), days=30)
    write(journal, *(f"new-{number}" for number in range(100)))
    with (
        AgedServer(says) as server,
        closing(exporter_to(server)) as exporter,
        export_of(journal, Destination(exporter, clock=clock), 512) as export,
    ):
        run(export, clock)

        assert {f"new-{number}" for number in range(100)} <= set(server.accepted)
        assert not set(map(str, range(5000))) & set(server.accepted)
        progress = export.progress
        assert (progress.counts.exported, progress.counts.quarantined, progress.position.seq) == (100, 5000, 5101)
        aside = [(entry.first_seq, entry.last_seq) for entry in quarantine_of(export)]
        assert sum(last - first + 1 for first, last in aside) == 5000
        assert (aside[0][0], aside[-1][1]) == (2, 5001)
        # One by one it took three for each line.
        assert len(server.requests) < 250
    journal.close()


@pytest.mark.slow
@pytest.mark.parametrize("says", [as_loki, counted], ids=["400", "partial success"])
def test_records_that_are_young_enough_arrive_from_the_middle_of_an_old_backlog(
    says: Callable[[int, int], Answer], journal: Journal, clock: Clock
) -> None:
    now_ns = time.time_ns()  # of all: a segment ends with a line that was observed much later
    for number, old in enumerate([100, 37, 3, 60, 200, 1, 9, 50, 80, 60]):
        write_old(journal, *(f"old-{number}-{each}" for each in range(old)), days=30 - number, observed_ns=now_ns)
        write_old(journal, f"young-{number}", days=2, observed_ns=now_ns)
    with (
        AgedServer(says) as server,
        closing(exporter_to(server)) as exporter,
        export_of(journal, Destination(exporter, clock=clock), 512) as export,
    ):
        run(export, clock)

        assert set(server.accepted) == {"header", *(f"young-{number}" for number in range(10))}
        assert (export.progress.counts.exported, export.progress.counts.quarantined) == (10, 600)


@pytest.mark.parametrize("more", [1, 5, 12, 14, 16, 18, 19, 20, 21, 22, 30])
def test_an_endpoint_that_calls_everything_too_old_for_a_while_costs_no_record(
    more: int, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    answers_left = iter(range(more))
    server.judge = lambda names: as_loki(len(names), len(names)) if next(answers_left, None) is not None else None
    write(journal, *range(75))
    export = exporting(journal)

    run(export, clock)

    assert set(server.accepted) == {"header", *map(str, range(75))}
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (75, 0)


@pytest.mark.parametrize("still_old", [0, 1, 5, 8, 12, 16, 30, 70])
def test_a_run_that_is_no_longer_refused_once_another_line_is_accepted_costs_only_its_old_records(
    still_old: int, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    old = set(map(str, range(90)))

    def judge(names: Sequence[str]) -> Answer | None:
        found = len(old & set(names))
        if server.batches.count(["header"]) == 2:  # a copy follows the first run; from there on older records are taken
            old.intersection_update(map(str, range(still_old)))
        return as_loki(found, len(names)) if found else None

    server.judge = judge
    write(journal, *range(90))
    export = exporting(journal)

    run(export, clock)

    assert set(server.accepted) == {"header", *map(str, range(still_old, 90))}
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (90 - still_old, still_old)


@pytest.mark.slow
def test_records_that_are_refused_for_another_reason_than_their_age_are_found_one_by_one(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    names = [("good" if number % 10 == 5 else "bad") + f"-{number}" for number in range(200)]
    server.judge = lambda sent: Answer(400, b"no tenant") if any(name.startswith("bad") for name in sent) else None
    write(journal, *names)
    export = exporting(journal)

    run(export, clock)

    assert set(server.accepted) == {"header", *(name for name in names if name.startswith("good"))}
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (20, 180)
