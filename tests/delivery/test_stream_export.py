"""What each answer of a real server does to the lines of a real stream: the outcome table, line by line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from otel_audit.delivery.batch import Batch
from otel_audit.delivery.destination import Destination
from otel_audit.delivery.otlp import OtlpExporter
from otel_audit.delivery.outcomes import ExportOutcome
from otel_audit.delivery.stream_export import Blocked, Halved, Idle, Moved, Step, StreamExport
from otel_audit.journal.journal import Journal
from otel_audit.journal.recovery import Shipment, take
from otel_audit.journal.stream import Limits
from otel_audit.settings import OtlpProtocol, OtlpSettings
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.journal.writing import a_journal, append
from tests.servers.otlp_server import Answer, OtlpServer, login_page, partial_success, redirect

ROOT = Path(__file__).parents[2]
BAD_REQUEST = Answer(400, b"bad record", (("Content-Type", "text/plain"),))


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[AuditedServer]:
    with AuditedServer() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = a_journal(tmp_path)
    yield journal
    journal.close()


Open = Callable[..., StreamExport]


@pytest.fixture
def exporting(server: AuditedServer, clock: Clock) -> Iterator[Open]:
    """Opens the export of the stream of a journal to the server; all of them share one destination."""
    with ExitStack() as opened:
        destinations: list[Destination] = []

        def open_export(journal: Journal, *, timeout_s: float = 10.0, batch_count: int = 512) -> StreamExport:
            if not destinations:
                exporter = exporter_to(server, timeout_s=timeout_s)
                opened.callback(exporter.close)
                destinations.append(Destination(exporter, clock=clock))
            return opened.enter_context(_export(journal, destinations[0], batch_count))

        yield open_export


@contextmanager
def _export(journal: Journal, destination: Destination, batch_count: int) -> Iterator[StreamExport]:
    shipment = _shipment(journal)
    export = StreamExport(shipment, destination, batch_count=batch_count)
    yield export
    export.close()
    shipment.cursor.close()
    shipment.ship_lock.release()


def _shipment(journal: Journal) -> Shipment:
    assert journal.stream is not None
    shipment = take(journal.stream.files)
    assert shipment is not None
    return shipment


def write(journal: Journal, *names: object) -> None:
    for name in names:
        append(journal, name)


def run(export: StreamExport, clock: Clock, *, steps: int = 200) -> list[Step]:
    """Steps until there is nothing more to send; no wait is real."""
    taken: list[Step] = []
    for _ in range(steps):
        taken.append(export.step())
        clock.now += 120.0
        if isinstance(taken[-1], Idle) and not export.blocked:
            return taken
    raise AssertionError(f"expected an end within {steps} steps, last: {taken[-5:]}")


def refuses(*bad: str, answer: Answer = BAD_REQUEST) -> Callable[[Sequence[str]], Answer | None]:
    return lambda names: answer if set(names) & set(bad) else None


def test_accepted_lines_move_the_cursor_and_are_not_sent_again(
    journal: Journal, server: AuditedServer, exporting: Open
) -> None:
    write(journal, "a", "b")
    export = exporting(journal)

    assert export.step() == Moved(full=False)
    assert export.step() == Idle()

    assert server.batches == [["header", "a", "b"]]
    progress = export.progress
    assert (progress.exported, progress.system, progress.position.seq) == (2, 1, 3)


def test_an_accepted_batch_with_a_warning_is_accepted(journal: Journal, server: AuditedServer, exporting: Open) -> None:
    server.will_answer(partial_success(0, "disk is nearly full"))
    write(journal, "a")
    export = exporting(journal)

    assert export.step() == Moved(full=False)

    assert export.progress.exported == 1


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

    steps = [export.step() for _ in range(8)]

    assert all(isinstance(step, Blocked) for step in steps)
    assert export.progress.position.seq == 0
    assert export.progress.quarantined == 0
    assert export.progress.blocked == steps[-1].reason  # type: ignore[union-attr]  # all are Blocked
    server.judge = lambda names: None
    run(export, clock)
    assert server.accepted == ["header", "a", "b"]
    assert (export.progress.exported, export.progress.quarantined, export.progress.blocked) == (2, 0, "")


def test_nobody_listening_moves_nothing(journal: Journal, exporting: Open, server: AuditedServer) -> None:
    with OtlpServer() as gone:
        pass
    write(journal, "a")
    exporter = exporter_to(gone)
    with _export(journal, Destination(exporter), 512) as export:
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
    assert export.progress.quarantined == 0
    assert all(len(batch) == 21 for batch in server.batches)  # never halved: no record is at fault


def test_the_time_that_the_server_asks_for_is_passed_on(
    journal: Journal, server: AuditedServer, exporting: Open
) -> None:
    server.will_answer(Answer(503, headers=(("Retry-After", "7"),)))
    write(journal, "a")

    step = exporting(journal).step()

    assert isinstance(step, Blocked)
    assert step.retry_after_s == 7


def test_a_batch_that_is_too_large_is_halved_until_it_fits_and_loses_nothing(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: Answer(413) if len(names) > 5 else None
    write(journal, *range(99))
    export = exporting(journal, batch_count=64)

    steps = run(export, clock)

    assert server.accepted == ["header", *map(str, range(99))]
    assert export.progress.quarantined == 0
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
    assert export.progress.quarantined == 0


def test_batches_grow_again_after_one_line_alone_was_too_large(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("5", answer=Answer(413))
    write(journal, *range(600))
    export = exporting(journal, batch_count=16)

    run(export, clock)

    assert export.progress.quarantined == 1
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


def test_one_bad_record_among_a_thousand_is_the_only_one_set_aside(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("613")
    write(journal, *range(1000))
    export = exporting(journal)

    run(export, clock)

    assert server.accepted == ["header", *(str(number) for number in range(1000) if number != 613)]
    progress = export.progress
    assert (progress.exported, progress.quarantined, progress.system) == (999, 1, 1)
    (entry,) = progress.quarantine
    assert (entry.first_seq, entry.last_seq) == (615, 615)  # the header is number 1
    assert entry.reason == "400 Bad Request: bad record"


def test_a_partial_success_is_followed_to_the_record_that_was_rejected(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("3", answer=partial_success(1, "no such tenant"))
    write(journal, *range(8))
    export = exporting(journal)

    run(export, clock)

    (entry,) = export.progress.quarantine
    assert (entry.first_seq, entry.last_seq) == (5, 5)
    assert entry.reason == "1 of 1 records rejected: no such tenant"
    assert export.progress.exported == 7


def test_a_server_that_refuses_everything_quarantines_nothing(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: BAD_REQUEST
    write(journal, *range(300))
    export = exporting(journal)

    for _ in range(20):
        export.step()
        clock.now += 120
    assert export.progress.quarantined == 0
    assert export.progress.position.seq == 0
    assert export.blocked == "400 Bad Request: bad record"

    server.judge = lambda names: None
    run(export, clock)
    assert export.progress.exported == 300
    assert export.progress.quarantined == 0


def test_a_short_stream_that_is_refused_as_a_whole_waits(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = lambda names: BAD_REQUEST
    write(journal, "a", "b")
    export = exporting(journal)

    for _ in range(10):
        export.step()
        clock.now += 120

    assert (export.progress.quarantined, export.progress.position.seq) == (0, 0)
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
    assert (export.progress.exported, export.progress.quarantined, export.progress.system) == (1, 100, 1)
    (entry,) = export.progress.quarantine
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
    assert len(list(tmp_path.glob("*.jsonl"))) > 1
    assert export.progress.quarantined == 100


def test_a_server_that_gives_each_record_a_reason_of_its_own_does_not_fill_the_cursor(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    def judge(names: Sequence[str]) -> Answer | None:
        return None if set(names) == {"good"} else Answer(400, f"{names[0]} is too old".encode())

    server.judge = judge
    write(journal, *range(300), "good")
    export = exporting(journal)

    run(export, clock)

    assert export.progress.quarantined == 300
    ranges = export.progress.quarantine
    assert [each.reason.removeprefix("400 Bad Request: ") for each in ranges[:2]] == [
        "header is too old",
        "0 is too old",
    ]
    assert len(ranges) == 100
    assert (ranges[-1].first_seq, ranges[-1].last_seq) == (100, 301)


def test_a_bad_record_at_the_very_end_waits_until_another_line_was_accepted(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    server.judge = refuses("last")
    write(journal, "a", "last")
    export = exporting(journal)
    for _ in range(10):
        export.step()
        clock.now += 120
    assert (export.progress.exported, export.progress.quarantined) == (1, 0)
    assert export.blocked

    write(journal, "b")
    run(export, clock)

    assert (export.progress.exported, export.progress.quarantined) == (2, 1)
    assert not export.blocked


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

    assert (export.progress.exported, export.progress.quarantined) == (0, 1)
    assert export.progress.position.seq == 2
    other.close()


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

    assert export.progress.exported == 99
    (entry,) = export.progress.quarantine
    assert (entry.first_seq, entry.last_seq) == (72, 72)


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
    assert (export.progress.exported, export.progress.system, export.progress.quarantined) == (100, 1, 0)
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
    assert export.progress.quarantined == 0
    run(export, clock)

    assert set(server.accepted) == {"header", *map(str, range(6))}
    assert (export.progress.exported, export.progress.quarantined) == (6, 0)


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
    with closing(exporter), _export(journal, Destination(exporter, clock=clock), 512) as export:
        assert isinstance(export.step(), Blocked)
        clock.now += 601
        run(export, clock)

        assert (export.progress.exported, export.progress.quarantined) == (99, 1)


def test_an_export_that_does_not_come_back_is_said_to_be_under_way(
    journal: Journal, server: AuditedServer, clock: Clock
) -> None:
    write(journal, "a")
    told: list[str] = []

    class Late(OtlpExporter):
        def export(self, batch: Batch) -> ExportOutcome:
            for _ in range(2):
                clock.now += 45
                told.append(destination.stuck)
            return super().export(batch)

    with closing(Late(OtlpSettings(server.endpoint, OtlpProtocol.HTTP_PROTOBUF))) as exporter:
        destination = Destination(exporter, clock=clock)
        with _export(journal, destination, 512) as export:
            export.step()

    assert told == ["", "an export has been under way for 90 s"]
    assert destination.stuck == ""


def test_a_line_from_which_no_record_can_be_built_is_the_only_one_set_aside(
    journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, *range(10))
    journal.append("odd", b'{"event_type":5}', time.time_ns(), time.time_ns())
    write(journal, *range(10, 20))
    export = exporting(journal)

    run(export, clock)

    assert server.accepted == ["header", *map(str, range(20))]
    (entry,) = export.progress.quarantine
    assert (entry.first_seq, entry.last_seq) == (12, 12)
    assert "event_type" in entry.reason


def test_a_file_that_cannot_be_read_costs_nothing_once_it_is_back(
    tmp_path: Path, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, "a")
    export = exporting(journal)
    (segment,) = tmp_path.glob("*.jsonl")
    away = segment.rename(tmp_path / "away")
    segment.symlink_to(away)  # a link is never followed
    with pytest.raises(OSError, match="symbolic link"):
        export.step()
    export.hold("cannot be read")
    assert export.step() == Idle()

    segment.unlink()
    away.rename(segment)
    clock.now += 120
    run(export, clock)

    assert server.accepted == ["header", "a"]
    assert not export.blocked


def test_progress_continues_where_the_last_owner_stopped(
    journal: Journal, server: AuditedServer, clock: Clock, exporting: Open
) -> None:
    exporter = exporter_to(server)
    write(journal, *range(10))
    with _export(journal, Destination(exporter), 4) as first:
        first.step()
    exporter.close()

    run(exporting(journal), clock)

    assert server.batches == [["header", "0", "1", "2"], ["3", "4", "5", "6", "7", "8", "9"]]


KILLED_BEFORE_THE_CURSOR = """
    import os, signal, sys
    from pathlib import Path
    from otel_audit.delivery.destination import Destination
    from otel_audit.delivery.otlp import OtlpExporter
    from otel_audit.delivery.stream_export import StreamExport
    from otel_audit.journal.files import streams_in
    from otel_audit.journal.recovery import take
    from otel_audit.settings import OtlpProtocol, OtlpSettings

    class DiesAfterTheAnswer(OtlpExporter):
        def export(self, batch):
            outcome = super().export(batch)
            os.kill(os.getpid(), signal.SIGKILL)
            return outcome

    shipment = take(streams_in(Path(sys.argv[1]))[0])
    exporter = DiesAfterTheAnswer(OtlpSettings(sys.argv[2], OtlpProtocol.HTTP_PROTOBUF))
    StreamExport(shipment, Destination(exporter)).step()
"""


def test_a_kill_between_answer_and_cursor_sends_the_same_records_again(
    tmp_path: Path, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, "a", "b")

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_BEFORE_THE_CURSOR), str(tmp_path), server.endpoint],
        cwd=ROOT,
        env={**os.environ, "NO_PROXY": "*"},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    run(exporting(journal), clock)

    first, second = server.requests
    assert first.body == second.body
    assert server.batches[0] == ["header", "a", "b"]
