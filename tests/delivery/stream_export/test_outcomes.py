"""What each answer of a real server does to the lines of a real stream: the outcome table, line by line."""

from __future__ import annotations

import pytest

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.stream_export import Blocked, Halved, Idle, Moved
from otel_audit.journal.journal import Journal
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.stream_export.exporting import Clock, Open, export_of, run, write
from tests.servers.otlp_server import Answer, OtlpServer, login_page, partial_success, redirect


def test_accepted_lines_move_the_cursor_and_are_not_sent_again(
    journal: Journal, server: AuditedServer, exporting: Open
) -> None:
    write(journal, "a", "b")
    export = exporting(journal)

    assert export.step() == Moved(full=False)
    assert export.step() == Idle()

    assert server.batches == [["header", "a", "b"]]
    progress = export.progress
    assert (progress.counts.exported, progress.counts.system, progress.position.seq) == (2, 1, 3)


def test_an_accepted_batch_with_a_warning_is_accepted(journal: Journal, server: AuditedServer, exporting: Open) -> None:
    server.will_answer(partial_success(0, "disk is nearly full"))
    write(journal, "a")
    export = exporting(journal)

    assert export.step() == Moved(full=False)

    assert export.progress.counts.exported == 1


UNAVAILABLE = [
    *(Answer(status) for status in (401, 403, 404, 405, 407, 408, 415, 429, 500, 502, 503, 504, 507)),
    redirect("http://127.0.0.1:9/login"),
    login_page(),
    Answer(200, b'{"error":"not here"}', (("Content-Type", "application/json"),)),
    Answer(cut_after_bytes=0, reset=True),
    Answer(cut_after_bytes=20),
    Answer(raw=b"SSH-2.0-OpenSSH\r\n", keep_alive=False),
]


@pytest.mark.parametrize("answer", UNAVAILABLE, ids=lambda answer: f"{answer.status} {answer.body[:12]!r}")
def test_what_is_the_endpoints_fault_moves_nothing_and_costs_nothing(
    answer: Answer, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    # Twice each time: a kept connection that breaks is tried anew at once.
    server.judge = lambda names: answer
    write(journal, "a", "b")
    export = exporting(journal)

    steps = []
    for _ in range(8):
        steps.append(export.step())
        clock.now += 1

    # Only what may be too much at once is sent in smaller batches, down to single lines.
    may_be_too_much = answer.status in (429, 504) or answer.cut_after_bytes is not None
    assert {type(step) for step in steps} == ({Blocked, Halved} if may_be_too_much else {Blocked})
    assert isinstance(steps[-1], Blocked)
    assert export.progress.position.seq == 0
    assert export.progress.counts.quarantined == 0
    assert export.progress.blocked == steps[-1].reason
    server.judge = lambda names: None
    run(export, clock)
    assert server.accepted == ["header", "a", "b"]
    assert (export.progress.counts.exported, export.progress.counts.quarantined, export.progress.blocked) == (2, 0, "")


def test_an_endpoint_that_is_away_is_asked_with_one_line_until_it_accepts(
    journal: Journal, server: AuditedServer, exporting: Open
) -> None:
    """A collector whose queue is full archives each copy, and whole batches would push older events out of there."""
    server.judge = lambda names: Answer(503)
    write(journal, "a", "b", "c")
    export = exporting(journal)

    steps = [export.step() for _ in range(3)]
    server.judge = lambda names: None
    steps += [export.step() for _ in range(3)]

    assert [type(step) for step in steps] == [Blocked, Blocked, Blocked, Moved, Moved, Idle]
    assert server.batches == [["header", "a", "b", "c"], ["header"], ["header"], ["header"], ["a", "b", "c"]]


def test_nobody_listening_moves_nothing(journal: Journal, exporting: Open, server: AuditedServer) -> None:
    with OtlpServer() as gone:
        pass
    write(journal, "a")
    exporter = exporter_to(gone)
    with export_of(journal, Destination(exporter), 512) as export:
        step = export.step()

    assert isinstance(step, Blocked)
    assert "connection refused" in step.reason
    assert export.progress.position.seq == 0


def test_a_wrong_token_for_a_whole_night_quarantines_nothing_and_says_401(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: Answer(401)
    write(journal, *range(20))
    export = exporting(journal)

    for _ in range(100):
        step = export.step()
        assert isinstance(step, Blocked)
        assert "401" in step.reason
        clock.now += 600

    assert "401" in export.progress.blocked
    assert export.progress.counts.quarantined == 0
    assert {len(batch) for batch in server.batches} == {21, 1}  # whole, then one to ask with: no record is at fault


def test_the_time_that_the_server_asks_for_is_passed_on(
    journal: Journal, server: AuditedServer, exporting: Open
) -> None:
    server.will_answer(Answer(503, headers=(("Retry-After", "7"),)))
    write(journal, "a")

    step = exporting(journal).step()

    assert isinstance(step, Blocked)
    assert step.retry_after_s == 7
