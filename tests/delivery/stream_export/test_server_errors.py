"""A server error that stays is taken for one of a record, and costs none when it was one of the server."""

from __future__ import annotations

from contextlib import closing

import pytest

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.delivery.outcomes import Batch, ExportOutcome
from otel_audit.delivery.stream_export import Blocked, Moved
from otel_audit.journal.journal import Journal
from otel_audit.settings import OtlpProtocol, OtlpSettings
from tests.delivery.audited_server import AuditedServer
from tests.delivery.stream_export.exporting import Clock, Open, export_of, quarantine_of, refuses, run, write
from tests.servers.otlp_server import Answer


def test_a_server_error_that_stays_for_ten_minutes_is_taken_for_a_record(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("70", answer=Answer(500))
    write(journal, *range(100))
    export = exporting(journal)

    assert isinstance(export.step(), Blocked)
    clock.now += 590
    assert isinstance(export.step(), Blocked)
    assert len(server.batches) == 2
    clock.now += 20
    assert isinstance(export.step(), Moved)

    assert export.progress.counts.exported == 99
    (entry,) = quarantine_of(export)
    assert (entry.first_seq, entry.last_seq) == (72, 72)


def test_a_server_error_long_after_another_one_is_not_taken_for_one_that_stayed(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: Answer(500)
    write(journal, *range(50))
    export = exporting(journal)
    assert isinstance(export.step(), Blocked)
    server.judge = lambda names: None
    run(export, clock)
    clock.now += 3600

    server.judge = lambda names: Answer(500)
    write(journal, *range(50, 100))
    sent_before = len(server.batches)

    assert isinstance(export.step(), Blocked)
    assert len(server.batches) == sent_before + 1


@pytest.mark.parametrize("more", [1, 2, 7, 8, 11, 30, 45])
def test_a_server_that_recovers_while_a_record_is_looked_for_costs_no_record(
    more: int, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: Answer(500)
    write(journal, *range(100))
    export = exporting(journal)
    export.step()
    clock.now += 601

    answers_left = iter(range(more))
    server.judge = lambda names: Answer(500) if next(answers_left, None) is not None else None
    run(export, clock)

    assert set(server.accepted) == {"header", *map(str, range(100))}
    assert (export.progress.counts.exported, export.progress.counts.system, export.progress.counts.quarantined) == (
        100,
        1,
        0,
    )
    assert not export.progress.blocked


def test_a_record_that_no_answer_came_for_twice_is_not_set_aside_while_the_server_is_away_again(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("2", answer=Answer(500))
    write(journal, *range(6))
    export = exporting(journal)
    export.step()
    clock.now += 601

    alone = iter([Answer(500), Answer(503)])
    server.judge = lambda names: next(alone, None) if names == ["2"] else Answer(500) if "2" in names else None
    export.step()
    assert export.progress.counts.quarantined == 0
    run(export, clock)

    assert set(server.accepted) == {"header", *map(str, range(6))}
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (6, 0)


class Choking(OtlpExporter):
    """An exporter with a fault of its own."""

    def export(self, batch: Batch) -> ExportOutcome:
        if any(b'"70"' in line.content for line in batch.lines):
            raise KeyError("a fault of its own")
        return super().export(batch)


def test_a_record_that_an_exporter_cannot_stand_does_not_stop_the_others_for_ever(
    journal: Journal, server: AuditedServer, clock: Clock
) -> None:
    write(journal, *range(100))
    exporter = Choking(OtlpSettings(server.endpoint, OtlpProtocol.HTTP_PROTOBUF))
    with closing(exporter), export_of(journal, Destination(exporter, clock=clock), 512) as export:
        assert isinstance(export.step(), Blocked)
        clock.now += 601
        run(export, clock)

        assert (export.progress.counts.exported, export.progress.counts.quarantined) == (99, 1)
