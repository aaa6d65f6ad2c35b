"""A batch that is too large, or takes too long, is halved until it fits, and nothing of it is lost."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from http import HTTPStatus

import pytest
from grpc import StatusCode

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.delivery.outcomes import Batch, ExportOutcome
from otel_audit.delivery.stream_export import Blocked, Halved
from otel_audit.journal.journal import Journal
from otel_audit.settings import OtlpProtocol, OtlpSettings
from tests.delivery.audited_server import AuditedServer, exporter_to, names_in
from tests.delivery.stream_export.exporting import Clock, Open, export_of, quarantine_of, refuses, run, write
from tests.servers.collector import Collector, StartCollector
from tests.servers.otlp_grpc_server import GrpcReply, OtlpGrpcServer, refusal
from tests.servers.otlp_server import Answer

LONG = "long" * 1000
TOO_LARGE = f"413 {HTTPStatus(413).phrase}"  # as the test's server words it: Python 3.13 has other words


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
    server.judge = refuses(LONG, answer=Answer(413))
    write(journal, *range(5), LONG, *range(5, 600))
    export = exporting(journal, batch_count=16)

    run(export, clock)

    (entry,) = quarantine_of(export)
    assert (entry.first_seq, entry.last_seq, entry.reason) == (7, 7, TOO_LARGE)
    assert set(server.accepted) == {"header", *map(str, range(600))}
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


NO_REAL_ANSWER = [
    pytest.param(Answer(429), "429 Too Many Requests", id="429"),
    pytest.param(Answer(504), "504 Gateway Timeout", id="504"),
    pytest.param(Answer(cut_after_bytes=0, reset=True), "connection closed before an answer", id="closed"),
    pytest.param(Answer(delay_s=30), "no answer within 0.3 s", id="time-out"),
]


def test_a_line_that_is_no_larger_than_others_is_never_set_aside_for_its_size(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("5", answer=Answer(413))
    write(journal, *range(20))
    export = exporting(journal)
    for _ in range(30):
        export.step()
        clock.now += 120

    assert export.progress.counts.quarantined == 0
    assert export.progress.blocked == f"{TOO_LARGE} (no larger than what was accepted before)"
    server.judge = lambda names: None
    run(export, clock)
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (20, 0)


LOWERED = [
    pytest.param(Answer(413), id="413"),
    pytest.param(
        Answer(400, b'{"code":3,"message":"http: request body too large"}', (("Content-Type", "application/json"),)),
        id="the collector's words",
    ),
]


@pytest.mark.parametrize("too_large", LOWERED)
def test_a_line_behind_a_limit_that_was_lowered_is_set_aside_and_the_next_ones_arrive(
    too_large: Answer, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, *range(3), LONG, *range(3, 6))
    export = exporting(journal)
    run(export, clock)
    server.judge = lambda names: too_large if any(len(name) > 1000 for name in names) else None

    write(journal, "less" * 900, *range(6, 9))
    run(export, clock)

    (entry,) = quarantine_of(export)
    assert (entry.first_seq, entry.last_seq) == (9, 9)
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (10, 1)
    server.judge = lambda names: None
    write(journal, "last" * 900)
    run(export, clock)
    assert export.progress.counts.exported == 11


def test_a_line_is_not_set_aside_while_one_of_several_servers_still_takes_its_size(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, *range(3), LONG, *range(3, 6))
    export = exporting(journal)
    run(export, clock)
    lowered = iter([True] * 3)  # the server with the lower limit gets the line, and the first two probes
    server.judge = lambda names: (
        Answer(413) if any(len(name) > 1000 for name in names) and next(lowered, False) else None
    )

    write(journal, "less" * 900)
    run(export, clock)

    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (8, 0)


@pytest.mark.collector
def test_a_line_behind_the_lowered_limit_of_a_collector_is_set_aside_and_the_next_ones_arrive(
    journal: Journal, start_collector: StartCollector, clock: Clock
) -> None:
    limit = "receivers::otlp::protocols::http::max_request_body_size: ${env:BODY_BYTES}"
    collector = start_collector(variables={"BODY_BYTES": "0"}, overrides=[limit])
    exporter = OtlpExporter(OtlpSettings(collector.logs_url, OtlpProtocol.HTTP_PROTOBUF))
    write(journal, *range(3), LONG * 5, *range(3, 6))
    with closing(exporter), export_of(journal, Destination(exporter, clock=clock), 512) as export:
        run(export, clock)
        collector.stop()
        collector.variables["BODY_BYTES"] = "16000"
        collector.start()

        write(journal, LONG * 4, *range(6, 9))
        run(export, clock)

        (entry,) = quarantine_of(export)
        assert (entry.first_seq, entry.last_seq) == (9, 9)
        assert "too large" in entry.reason
    assert {record.attributes["audit.sequence.number"] for record in collector.archive()} == {*range(1, 9), 10, 11, 12}


@pytest.mark.parametrize(("answer", "reason"), NO_REAL_ANSWER)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_line_that_alone_is_too_large_for_an_endpoint_that_does_not_say_so_is_set_aside(
    place: str, answer: Answer, reason: str, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    names = list(range(9))
    position = {"first": 0, "middle": 5, "last": 9}[place]
    server.judge = refuses(LONG, answer=answer)
    write(journal, *names[:position], LONG, *names[position:])
    export = exporting(journal, timeout_s=0.3)

    run(export, clock)

    (entry,) = quarantine_of(export)
    assert (entry.first_seq, entry.last_seq) == (position + 2, position + 2)
    assert entry.reason.endswith(reason)
    assert set(server.accepted) == {"header", *map(str, names)}
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (9, 1)
    # Three in a row, and three more, each after another line was accepted.
    assert server.batches.count([LONG]) >= 6


@pytest.mark.parametrize(("answer", "reason"), NO_REAL_ANSWER)
def test_a_line_that_is_answered_at_last_by_an_endpoint_that_is_slow_or_restarts_is_not_set_aside(
    answer: Answer, reason: str, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    missing = iter([answer] * 5)  # the sixth would be too many
    server.judge = lambda names: next(missing, None) if names == [LONG] else None
    write(journal, *range(5), LONG, *range(5, 9))
    export = exporting(journal, timeout_s=2.0, batch_count=1)

    run(export, clock)

    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (10, 0)
    assert server.batches.count([LONG]) == 6


@pytest.mark.collector
def test_a_collector_that_is_killed_with_every_request_for_a_line_costs_no_line(
    journal: Journal, collector: Collector, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs until the time is over, is killed, and is back before the next request: the worst moments for us."""
    killed: list[int] = []
    settings = OtlpSettings(collector.logs_url, OtlpProtocol.HTTP_PROTOBUF, timeout_s=2.0)
    exporter = OtlpExporter(settings)
    export_to = exporter.export

    def export_while_it_dies(batch: Batch) -> ExportOutcome:
        is_of_the_line = any(LONG.encode() in content for content in batch.contents)
        if not is_of_the_line or killed[-5:] == [1] * 5:
            return export_to(batch)
        killed.append(batch.records)
        os.kill(collector.pid, signal.SIGSTOP)
        outcome = export_to(batch)
        collector.kill()
        collector.start()
        return outcome

    monkeypatch.setattr(exporter, "export", export_while_it_dies)
    write(journal, "0", LONG, "1", "2")
    with closing(exporter), export_of(journal, Destination(exporter, clock=clock), 2) as export:
        run(export, clock)

        assert (export.progress.counts.exported, export.progress.counts.quarantined) == (4, 0)
    assert 2 in killed
    assert {record.attributes["audit.sequence.number"] for record in collector.archive()} == {1, 2, 3, 4, 5}


def test_a_line_that_is_too_large_is_found_by_a_process_of_which_nothing_was_accepted_yet(
    journal: Journal, server: AuditedServer, clock: Clock
) -> None:
    server.judge = refuses(LONG, answer=Answer(cut_after_bytes=0, reset=True))
    write(journal, LONG)
    with closing(exporter_to(server)) as exporter, export_of(journal, Destination(exporter, clock=clock), 1) as first:
        first.step()
    write(journal, "next", "newest")

    with closing(exporter_to(server)) as exporter, export_of(journal, Destination(exporter, clock=clock), 512) as later:
        assert later.progress.position.seq == 1
        run(later, clock)

        assert (later.progress.counts.exported, later.progress.counts.quarantined) == (2, 1)


@pytest.mark.parametrize(("answer", "reason"), NO_REAL_ANSWER[:3])
def test_an_endpoint_with_too_much_to_do_costs_no_line(
    answer: Answer, reason: str, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: answer
    write(journal, *range(5), LONG, *range(5, 9))
    export = exporting(journal)

    steps = []
    for _ in range(50):
        steps.append(export.step())
        clock.now += 120

    # It does not look like progress, or the wait between two attempts would begin anew.
    assert {type(step) for step in steps} == {Blocked, Halved}
    assert (export.progress.counts.quarantined, export.progress.position.seq) == (0, 0)
    server.judge = lambda names: None
    run(export, clock)
    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (10, 0)


@pytest.mark.parametrize("more", [1, 2, 3, 4, 5, 6, 9])
def test_a_rate_limit_costs_no_ordinary_line(
    more: int, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, *range(100, 105))
    export = exporting(journal)
    run(export, clock)
    answers_left = iter(range(more))
    server.judge = lambda names: Answer(429) if next(answers_left, None) is not None else None

    for name in range(105, 110):
        write(journal, name)
        run(export, clock)

    assert (export.progress.counts.exported, export.progress.counts.quarantined) == (10, 0)


@pytest.mark.parametrize(
    ("options", "reply"),
    [
        ([("grpc.max_receive_message_length", 4000)], None),
        ([], refusal(StatusCode.OUT_OF_RANGE, "decoded message length too large")),
        ([], refusal(StatusCode.RESOURCE_EXHAUSTED, "no room")),
    ],
    ids=["a limit of grpcio", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED without a word about size"],
)
def test_a_line_that_alone_is_too_large_over_grpc_is_set_aside(
    options: list[tuple[str, int]], reply: GrpcReply | None, journal: Journal, clock: Clock
) -> None:
    write(journal, *range(5), LONG, *range(5, 9))
    with OtlpGrpcServer(options=options) as server:
        if reply is not None:
            server.judge = lambda message: reply if LONG.encode() in message else None
        settings = OtlpSettings(server.endpoint, OtlpProtocol.GRPC, insecure=True)
        with (
            closing(OtlpExporter(settings)) as exporter,
            export_of(journal, Destination(exporter, clock=clock), 512) as export,
        ):
            run(export, clock)

            (entry,) = quarantine_of(export)
            assert (entry.first_seq, entry.last_seq) == (7, 7)
            assert (export.progress.counts.exported, export.progress.counts.quarantined) == (9, 1)


@pytest.mark.parametrize(("answer", "reason"), NO_REAL_ANSWER[:3])
def test_a_batch_that_is_answered_as_by_an_endpoint_with_too_much_to_do_is_halved_on_the_third_in_a_row(
    answer: Answer, reason: str, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
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
    names = [*map(str, range(60)), LONG, *map(str, range(60, 99))]
    write(journal, *names)
    exporter = exporter_to(server, batch_bytes=3000)

    with closing(exporter), export_of(journal, Destination(exporter, clock=clock), 512) as export:
        run(export, clock)

    assert server.accepted == ["header", *names]
    assert export.progress.counts.quarantined == 0
    assert [LONG] in server.batches
    sizes = [len(request.body) for request in server.requests if len(names_in(request)) > 1]
    assert 1500 < max(sizes) <= 3000
