"""A batch that is too large, or takes too long, is halved until it fits, and nothing of it is lost."""

from __future__ import annotations

from contextlib import closing

import pytest

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.stream_export import Blocked, Halved
from otel_audit.journal.journal import Journal
from tests.delivery.audited_server import AuditedServer, exporter_to, names_in
from tests.delivery.stream_export.exporting import Clock, Open, export_of, refuses, run, write
from tests.servers.otlp_server import Answer


def test_a_batch_that_is_too_large_is_halved_until_it_fits_and_loses_nothing(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: Answer(413) if len(names) > 5 else None
    write(journal, *range(99))
    export = exporting(journal, batch_count=64)

    steps = run(export, clock)

    assert server.accepted == ["header", *map(str, range(99))]
    assert export.progress.counts.quarantined == 0
    assert [len(batch) for batch in server.batches][:6] == [64, 32, 16, 8, 4, 4]
    # It does not try the size that was refused with every other batch.
    assert sum(isinstance(step, Halved) for step in steps) <= 6


def test_the_collectors_own_words_for_too_large_halve_as_well(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    too_large = Answer(
        400, b'{"code":3,"message":"http: request body too large"}', (("Content-Type", "application/json"),)
    )
    server.judge = lambda names: too_large if len(names) > 10 else None
    write(journal, *range(30))
    export = exporting(journal)

    run(export, clock)

    assert server.accepted == ["header", *map(str, range(30))]
    assert export.progress.counts.quarantined == 0


def test_batches_grow_again_after_one_line_alone_was_too_large(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("5", answer=Answer(413))
    write(journal, *range(600))
    export = exporting(journal, batch_count=16)

    run(export, clock)

    assert export.progress.counts.quarantined == 1
    assert set(server.accepted) == {"header", *map(str, range(600))} - {"5"}
    assert max(len(batch) for batch in server.batches[-10:]) == 16


def test_time_outs_that_repeat_halve_the_batch(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: Answer(delay_s=30) if len(names) > 3 else None
    write(journal, *range(5))
    export = exporting(journal, timeout_s=0.3)

    steps = run(export, clock)

    assert [type(step) for step in steps[:3]] == [Blocked, Blocked, Halved]
    assert server.accepted == ["header", *map(str, range(5))]


@pytest.mark.parametrize(
    "answer", [Answer(429), Answer(504), Answer(cut_after_bytes=0, reset=True)], ids=["429", "504", "closed"]
)
def test_a_batch_that_is_answered_as_by_an_endpoint_with_too_much_to_do_is_halved_on_the_third_in_a_row(
    answer: Answer, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: answer if len(names) > 3 else None
    write(journal, *range(5))
    export = exporting(journal)

    steps = run(export, clock)

    assert [type(step) for step in steps[:3]] == [Blocked, Blocked, Halved]
    assert server.accepted == ["header", *map(str, range(5))]


def test_no_request_is_larger_than_the_limit_but_that_of_a_single_line_and_each_line_is_sent_once(
    journal: Journal, server: AuditedServer, clock: Clock
) -> None:
    names = [*map(str, range(60)), "long" * 1000, *map(str, range(60, 99))]
    write(journal, *names)
    exporter = exporter_to(server, batch_bytes=3000)

    with closing(exporter), export_of(journal, Destination(exporter, clock=clock), 512) as export:
        run(export, clock)

    assert server.accepted == ["header", *names]
    assert export.progress.counts.quarantined == 0
    assert ["long" * 1000] in server.batches
    sizes = [len(request.body) for request in server.requests if len(names_in(request)) > 1]
    assert 1500 < max(sizes) <= 3000
