"""What becomes of the records of a source: sent once, refused alone, waited for, and gone on with by a later run."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from otel_audit.replaying.replay import Replay, ReplayReport, ReplayState
from otel_audit.replaying.sending import Patience, Place, Trouble
from otel_audit.replaying.source import ParcelLimits
from otel_audit.stores.location import NothingStored
from otel_audit.stores.store import Kind
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.replaying.logs import a_line, a_log, a_source
from tests.servers.otlp_server import Answer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

AT_ONCE = Patience(give_up_after_s=0.0)
SOME = Patience(give_up_after_s=30.0, backoff_cap_s=0.1)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def replayed(
    log: Path, server: AuditedServer, *, records: int = 10, patience: Patience = AT_ONCE, timeout_s: float = 10.0
) -> ReplayReport:
    """One run, from the state of the runs before it."""
    exporter = exporter_to(server, timeout_s=timeout_s)
    try:
        state = ReplayState.load(log.with_name("state.json"))
        return Replay(a_source(log), exporter, state, limits=ParcelLimits(records), patience=patience).run()
    finally:
        exporter.close()


def names(*numbers: int) -> list[str]:
    return [f"event-{number}" for number in numbers]


def test_a_run_after_the_last_sends_nothing_and_says_what_all_of_them_did(log: Path, server: AuditedServer) -> None:
    a_log(log, 25, ids=True)
    first = replayed(log, server)

    second = replayed(log, server)

    assert first == second
    assert first.is_complete
    assert (first.tally.read, first.tally.sent) == (25, 25)
    assert server.batches == [names(*range(1, 11)), names(*range(11, 21)), names(*range(21, 26))]


def test_what_was_appended_since_is_all_that_the_next_run_sends(log: Path, server: AuditedServer) -> None:
    a_log(log, 3, ids=True)
    replayed(log, server)
    with log.open("a") as file:
        file.write(a_line(4, event_id="event-4") + "\n")

    report = replayed(log, server)

    assert server.batches == [names(1, 2, 3), names(4)]
    assert report.tally.sent == 4


def test_a_last_line_without_its_newline_is_sent_once(log: Path, server: AuditedServer) -> None:
    log.write_text(a_line(1, event_id="event-1"))
    assert replayed(log, server).is_complete
    with log.open("a") as file:
        file.write("\n" + a_line(2, event_id="event-2") + "\n")

    report = replayed(log, server)

    assert report.is_complete
    assert server.batches == [names(1), names(2)]


def test_half_a_line_at_the_end_is_said_and_sent_when_it_is_whole(log: Path, server: AuditedServer) -> None:
    whole = a_line(2, event_id="event-2")
    log.write_text(a_line(1, event_id="event-1") + "\n" + whole[:40])
    report = replayed(log, server)
    assert [trouble.place for trouble in report.tally.unreadable_lines] == [Place(log.name, 2)]
    with log.open("a") as file:
        file.write(whole[40:] + "\n")

    report = replayed(log, server)

    assert report.is_complete
    assert server.batches == [names(1), names(2)]


def test_lines_that_are_no_events_are_said_by_number_and_the_others_sent(log: Path, server: AuditedServer) -> None:
    good = a_line(1, event_id="event-1")
    log.write_bytes(b"\n".join([good.encode(), b"", b"{", b"[1]", b'{"event_type":1}', b'{"event_type":"\xff"}', b""]))

    report = replayed(log, server)

    assert not report.is_complete
    assert report.left == ""
    assert [trouble.place.line for trouble in report.tally.unreadable_lines] == [3, 4, 5, 6]
    assert "at `$.event_type`" in report.tally.unreadable_lines[2].reason
    assert server.batches == [names(1)]
    assert replayed(log, server) == report


def test_a_record_that_is_refused_alone_is_said_by_its_line_and_all_others_arrive(
    log: Path, server: AuditedServer
) -> None:
    a_log(log, 30, ids=True)
    server.judge = lambda sent: Answer(400, b"no") if {"event-7", "event-8"} & set(sent) else None

    report = replayed(log, server)

    assert report.left == ""
    assert report.tally.refused_lines == tuple(
        Trouble(Place(log.name, number), "400 Bad Request: no") for number in (7, 8)
    )
    assert (report.tally.read, report.tally.sent, report.tally.refused) == (30, 28, 2)
    assert sorted(server.accepted) == sorted(set(names(*range(1, 31))) - set(names(7, 8)))


def test_a_refused_record_at_the_end_is_settled_by_one_that_was_accepted_before(
    log: Path, server: AuditedServer
) -> None:
    a_log(log, 11, ids=True)
    server.judge = lambda sent: Answer(400, b"no") if "event-11" in sent else None

    report = replayed(log, server)

    assert report.left == ""
    assert report.tally.refused_lines == (Trouble(Place(log.name, 11), "400 Bad Request: no"),)
    assert server.accepted == [*names(*range(1, 11)), "event-10"]
    asked = len(server.requests)
    assert replayed(log, server) == report
    assert len(server.requests) == asked


@pytest.mark.parametrize("bad", [range(1, 41), range(50, 100), range(160, 201)], ids=["first", "middle", "last"])
def test_a_long_row_of_bad_records_stops_nothing(bad: range, log: Path, server: AuditedServer) -> None:
    a_log(log, 200, ids=True)
    refused = set(names(*bad))
    server.judge = lambda sent: Answer(400, b"no") if refused & set(sent) else None

    report = replayed(log, server, records=64)

    assert report.left == ""
    assert [place.line for place, _ in report.tally.refused_lines] == list(bad)
    assert (report.tally.read, report.tally.sent) == (200, 200 - len(bad))
    assert set(server.accepted) == set(names(*range(1, 201))) - refused


@pytest.mark.parametrize("count", [1, 5, 100])
def test_an_endpoint_that_refuses_everything_costs_no_record(count: int, log: Path, server: AuditedServer) -> None:
    a_log(log, count, ids=True)
    server.judge = lambda sent: Answer(400, b"no")

    report = replayed(log, server)

    assert "400 Bad Request: no" in report.left
    assert report.tally.read == 0
    server.judge = lambda sent: None
    assert replayed(log, server).tally.sent == count
    assert server.accepted == names(*range(1, count + 1))


@pytest.mark.parametrize("more", [1, 3, 8, 30, 60])
def test_an_endpoint_that_refuses_everything_for_a_while_costs_no_record(
    more: int, log: Path, server: AuditedServer
) -> None:
    a_log(log, 75, ids=True)
    answers_left = iter(range(more))
    server.judge = lambda sent: Answer(400, b"no") if next(answers_left, None) is not None else None

    report = replayed(log, server, records=75)

    assert report.is_complete
    assert set(server.accepted) == set(names(*range(1, 76)))


def test_a_parcel_that_is_too_large_is_halved(log: Path, server: AuditedServer) -> None:
    a_log(log, 20, ids=True)
    server.judge = lambda sent: Answer(413) if len(sent) > 3 else None

    assert replayed(log, server).is_complete
    assert server.accepted == names(*range(1, 21))


def test_a_parcel_over_the_limit_of_a_request_is_halved_before_it_is_sent(log: Path, server: AuditedServer) -> None:
    a_log(log, 40, ids=True)
    exporter = exporter_to(server, batch_bytes=4000)
    with closing(exporter):
        state = ReplayState.load(log.with_name("state.json"))

        report = Replay(a_source(log), exporter, state, patience=AT_ONCE).run()

    assert report.is_complete
    assert server.accepted == names(*range(1, 41))
    assert 1 < len(server.requests) < 40
    assert max(len(request.body) for request in server.requests) <= 4000


def test_a_parcel_for_which_the_time_is_too_short_is_halved(log: Path, server: AuditedServer) -> None:
    a_log(log, 4, ids=True)
    server.judge = lambda sent: Answer(delay_s=60) if len(sent) > 2 else None

    assert replayed(log, server, patience=SOME, timeout_s=0.5).is_complete
    assert server.accepted == names(1, 2, 3, 4)


@pytest.mark.parametrize(
    "answer", [Answer(413), Answer(504), Answer(cut_after_bytes=0, reset=True)], ids=["413", "504", "closed"]
)
@pytest.mark.parametrize("records", [1, 10])
def test_a_record_that_alone_is_too_large_is_said_by_its_line_and_all_others_arrive(
    records: int, answer: Answer, log: Path, server: AuditedServer
) -> None:
    a_log(log, 20, ids=True)
    long = "long" * 1000
    log.write_bytes(log.read_bytes().replace(b"event-14", long.encode()))
    server.judge = lambda sent: answer if long in sent else None

    report = replayed(log, server, records=records, patience=SOME)

    assert [place.line for place, _ in report.tally.refused_lines] == [14]
    assert set(server.accepted) == set(names(*range(1, 21))) - {"event-14"}


def test_an_endpoint_with_too_much_to_do_is_waited_for_with_a_single_record_too(
    log: Path, server: AuditedServer
) -> None:
    a_log(log, 1, ids=True)
    server.will_answer(*[Answer(429)] * 7)

    report = replayed(log, server, patience=SOME)

    assert report.is_complete
    assert report.tally.refused_lines == ()


def test_an_endpoint_that_comes_back_in_time_gets_everything(log: Path, server: AuditedServer) -> None:
    a_log(log, 20, ids=True)
    server.will_answer(Answer(503), Answer(401), Answer(429))

    assert replayed(log, server, patience=SOME).is_complete
    assert server.accepted == names(*range(1, 21))


def test_an_endpoint_that_stays_away_is_given_up_and_the_next_run_goes_on(log: Path, server: AuditedServer) -> None:
    a_log(log, 30, ids=True)
    server.judge = lambda sent: Answer(503) if "event-11" in sent else None

    report = replayed(log, server, patience=Patience(give_up_after_s=0.3, backoff_cap_s=0.1))

    assert report.left == "503 Service Unavailable"
    assert report.tally.sent == 10
    assert len(server.requests) > 2
    server.judge = lambda sent: None
    assert replayed(log, server).is_complete
    assert server.accepted == names(*range(1, 31))


def test_a_wait_that_the_server_asks_for_beyond_the_patience_is_not_waited(log: Path, server: AuditedServer) -> None:
    a_log(log, 1, ids=True)
    server.judge = lambda sent: Answer(503, headers=(("Retry-After", "120"),))

    assert replayed(log, server, patience=SOME).left == "503 Service Unavailable"
    assert len(server.requests) == 1


def test_whoever_asks_it_to_stop_does_not_wait_for_the_endpoint(log: Path, server: AuditedServer) -> None:
    a_log(log, 20, ids=True)
    server.judge = lambda sent: Answer(503)
    asked: list[float] = []
    patience = Patience(give_up_after_s=1e6, pause=asked.append, stopped=lambda: len(asked) > 2)

    report = replayed(log, server, patience=patience)

    assert report.left == "stopped: 503 Service Unavailable"
    assert len(asked) == 3


def test_a_state_that_is_something_else_is_said_and_all_is_sent(log: Path, server: AuditedServer) -> None:
    a_log(log, 3, ids=True)
    state = log.with_name("state.json")
    for content in (b"", b"{}", b'{"format":1,"marks":{"a":[1]}}', b"[]", b"\xff"):
        state.write_bytes(content)
        assert "sending all of it" in ReplayState.load(state).note

    assert replayed(log, server).is_complete
    assert ReplayState.load(state).note == ""


def test_a_shorter_file_with_the_same_first_line_is_read_from_its_start(log: Path, server: AuditedServer) -> None:
    a_log(log, 30, ids=True)
    replayed(log, server)
    a_log(log, 2, ids=True)

    replayed(log, server)

    assert server.batches[-1] == names(1, 2)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (512, 1)])
def test_a_parcel_has_no_more_records_than_it_may(sizes: Sequence[int], log: Path, server: AuditedServer) -> None:
    count, records = sizes[0] * 3, sizes[1]
    a_log(log, count, ids=True)

    assert replayed(log, server, records=max(records, count // 8)).is_complete
    assert max(map(len, server.batches)) <= max(records, count // 8)
    assert server.accepted == names(*range(1, count + 1))


def an_archive(*numbers: int) -> bytes:
    """A file of a collector's archive: each of these events in a request of its own, one a line."""
    records = [{"body": {"stringValue": json.dumps({"event_id": name})}} for name in names(*numbers)]
    requests = [{"resourceLogs": [{"resource": {}, "scopeLogs": [{"logRecords": [each]}]}]} for each in records]
    return b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in requests)


def an_archive_directory(tmp_path: Path) -> Path:
    """An archive of eight events: of its closed files one is compressed, and one is just being compressed."""
    directory = tmp_path / "archive"
    directory.mkdir()
    (directory / "audit-1-size.jsonl.zst").write_bytes(zstd.compress(an_archive(1, 2)))
    (directory / "audit-2-size.jsonl.gz").write_bytes(gzip.compress(an_archive(3, 4)))
    (directory / "audit-3-size.jsonl").write_bytes(an_archive(5, 6))
    (directory / "audit-3-size.jsonl.gz").write_bytes(gzip.compress(an_archive(5, 6)))
    (directory / "audit.jsonl").write_bytes(an_archive(7, 8))
    return directory


def test_the_compressed_files_of_an_archive_are_sent_with_the_others_and_a_copy_is_not(
    tmp_path: Path, server: AuditedServer
) -> None:
    directory = an_archive_directory(tmp_path)

    report = replayed(directory, server)

    assert a_source(directory).kind is Kind.ARCHIVE
    assert report.is_complete
    assert server.accepted == names(*range(1, 9))
    assert a_source(directory).size_bytes() is None


def test_a_file_that_was_compressed_since_the_last_run_is_not_sent_again(tmp_path: Path, server: AuditedServer) -> None:
    directory = an_archive_directory(tmp_path)
    replayed(directory, server)
    written = directory / "audit.jsonl"
    closed = directory / "audit-4-size.jsonl.gz"
    closed.write_bytes(gzip.compress(written.read_bytes() + an_archive(9)))
    written.write_bytes(an_archive(10))

    report = replayed(directory, server)

    assert report.is_complete
    assert server.accepted == names(*range(1, 11))


def test_a_compressed_file_that_is_cut_off_is_said_and_goes_on_when_it_is_whole(
    log: Path, server: AuditedServer
) -> None:
    content = gzip.compress(an_archive(*range(1, 500)))
    log.write_bytes(content[: len(content) // 2])

    report = replayed(log, server, records=100)

    sent = len(server.accepted)
    assert 0 < sent < 499
    assert not report.is_complete
    assert report.tally.unreadable_lines == (
        Trouble(Place(log.name, sent + 1), "expected a whole gzip file, got one that is cut off, or not yet whole"),
    )

    log.write_bytes(content)

    assert replayed(log, server, records=100).is_complete
    assert server.accepted == names(*range(1, 500))


def test_a_compressed_file_of_which_nothing_can_be_read_is_not_left_out(tmp_path: Path, server: AuditedServer) -> None:
    directory = an_archive_directory(tmp_path)
    (directory / "audit-4-size.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")

    report = replayed(directory, server)

    assert [trouble.place for trouble in report.tally.unreadable_lines] == [Place("audit-4-size.jsonl.gz", 1)]
    assert server.accepted == names(*range(1, 9))


def test_a_compressed_log_of_events_is_sent(log: Path, server: AuditedServer) -> None:
    a_log(log, 5, ids=True)
    log.write_bytes(zstd.compress(log.read_bytes()))

    assert replayed(log, server).is_complete
    assert server.accepted == names(*range(1, 6))


def test_zstd_without_the_module_for_it_says_what_to_install(
    tmp_path: Path, server: AuditedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = an_archive_directory(tmp_path)
    monkeypatch.setitem(sys.modules, zstd.__name__, None)

    with pytest.raises(NothingStored, match=r"compressed with zstd; install otel-audit\[zstd\], or unpack it first"):
        replayed(directory, server)

    (directory / "audit-1-size.jsonl.zst").unlink()
    assert replayed(directory, server).is_complete
    assert server.accepted == names(*range(3, 9))
