"""The page over log stores: a real VictoriaLogs, and a double of Loki that answers as a real one was recorded."""

from __future__ import annotations

import re
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
import requests
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from playwright.sync_api import expect

from otel_audit.journal.line import Line
from otel_audit.logger import AuditLogger
from otel_audit.records.encoding import encoded_request
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.location import open_store
from otel_audit.viewing import answers
from otel_audit.viewing.trail import ViewedTrail
from tests.journal_lines import HEADER, raw_line
from tests.servers import VictoriaLogs
from tests.servers.loki import LokiDouble
from tests.verification.verifiers import of_python
from tests.viewing.opened import Open
from tests.viewing.test_page import shown
from tests.viewing.trails import ALICE, all_events, asking, logging, some_events, until, viewed

pytestmark = pytest.mark.processes

TRACE: Final = SpanContext(0xABCDEF0123456789ABCDEF0123456789, 0x0123456789ABCDEF, False, TraceFlags(1))
OLD_NS: Final = 1_750_000_000 * 10**9
LogStore = VictoriaLogs | LokiDouble


def a_trail(directory: Path) -> Path:
    """20 events and one in a trace, with their signed ledger."""
    with logging(directory) as audit:
        some_events(audit, rounds=5)
        with use_span(NonRecordingSpan(TRACE)):
            log(audit, "/traced")
    return directory


def log(audit: AuditLogger, path: str) -> None:
    audit.log_http_request(method="GET", path=path, status_code=200, principal=ALICE)


def deliver(directory: Path, store: LogStore) -> None:
    """Send the whole trail, ledger included, as an exporter would."""
    journal = DirectoryStore(directory)
    contents = (each for stream_id in journal.streams() for each in journal.lines_of(stream_id))
    held = [each.content for each in contents if isinstance(each, Line)]
    request = encoded_request(HEADER, held)
    if isinstance(store, LokiDouble):
        store.put(ExportLogsServiceRequest.FromString(request))
        return
    headers = {"Content-Type": "application/x-protobuf"}
    requests.post(f"{store.otlp_endpoint}/v1/logs", data=request, headers=headers, timeout=30).raise_for_status()
    store.query("*")  # makes them searchable


def url_of(store: LogStore) -> str:
    return f"{'loki' if isinstance(store, LokiDouble) else 'victorialogs'}+{store.base_url}"


@pytest.fixture(params=["victorialogs", "loki"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LogStore]:
    if request.param == "loki":
        with LokiDouble() as loki:
            yield loki
    else:
        with VictoriaLogs(tmp_path / "victorialogs") as running:
            yield running


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is asked again at once, and not after some seconds."""
    for name in ("_AGAIN_S", "_RETRY_S"):
        monkeypatch.setattr(f"otel_audit.viewing.trail.{name}", 0.2)


def test_the_page_of_a_store_is_that_of_its_journal(look: Open, store: LogStore, tmp_path: Path, soon: None) -> None:
    journal = a_trail(tmp_path / "journal")
    deliver(journal, store)
    opened = look(url_of(store))
    page = opened.page

    expect(page.locator("#source")).to_contain_text(url_of(store))
    expect(page.locator("#count")).to_have_text("21 events")
    with viewed(journal) as trail:
        assert shown(opened) == [f"{each['stream_id']}:{each['seq']}" for each in all_events(trail)]
    assert page.locator("#spans button").count() > 0
    page.get_by_role("group", name="Outcomes to show").get_by_role("button", name=re.compile("Denied")).click()
    expect(page.locator("#count")).to_have_text("5 events")
    page.get_by_role("group", name="Outcomes to show").get_by_role("button", name=re.compile("Denied")).click()

    opened.rows().filter(has_text="/traced").click()
    for way, count in (("This person", "11 events"), ("This request", "1 event"), ("This trace", "1 event")):
        page.get_by_role("button", name=way).click()
        expect(page.locator("#count")).to_have_text(count)
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#count")).to_have_text("21 events")

    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download the proof").click()
    downloading.value.save_as(tmp_path / "event.tlog-proof")
    expect(page.locator("#event .result code").last).to_contain_text("otel-audit verify --proof")
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Follow").click()
    with logging(journal) as audit:
        log(audit, "/late")
    deliver(journal, store)
    expect(opened.rows().first).to_contain_text("/late")


def test_a_store_that_goes_away_is_said_and_what_was_read_stays(look: Open, tmp_path: Path, soon: None) -> None:
    journal = a_trail(tmp_path / "journal")
    with VictoriaLogs(tmp_path / "victorialogs") as store:
        deliver(journal, store)
        opened = look(url_of(store))
        page = opened.page
        page.get_by_role("button", name="Follow").click()
        store.stop()

        expect(page.locator("#reading")).to_contain_text("could not be read again, so what you see may be old")
        expect(page.locator("#said")).to_contain_text("may be old")
        expect(page.locator("#count")).to_have_text("21 events")
        opened.rows().filter(has_text="/traced").click()
        with page.expect_download():
            page.get_by_role("button", name="Download the proof").click()

        store.start()
        expect(page.locator("#reading")).to_be_hidden()


def test_a_store_that_is_away_at_first_is_asked_again(tmp_path: Path, soon: None) -> None:
    journal = a_trail(tmp_path / "journal")
    with LokiDouble() as store:
        store.letting_in = lambda headers: False
        deliver(journal, store)
        with viewed(url_of(store), opened=lambda: open_store(url_of(store))) as trail:
            until(lambda: "expected to be let in, got 401" in trail.reading.error, "the refusal")
            store.letting_in = lambda headers: True
            until(lambda: len(all_events(trail)) == 21, "the events")
            until(lambda: trail.report is not None, "the verification")


def test_no_credential_of_the_store_is_on_the_page(tmp_path: Path) -> None:
    journal = a_trail(tmp_path / "journal")
    token = tmp_path / "token"
    token.write_text("a-secret-token\n")
    with LokiDouble() as store:
        store.letting_in = lambda headers: headers.get("Authorization") == "Bearer a-secret-token"
        deliver(journal, store)
        url = f"{url_of(store)}?bearer_file={token}&tenant=a-secret-tenant"
        with viewed(url) as trail:
            row = all_events(trail)[0]
            told = [
                answers.state(trail),
                answers.verification(trail),
                answers.event(trail, asking(stream=row["stream_id"], seq=row["seq"])),
                answers.proof(trail, asking(stream=row["stream_id"], seq=row["seq"])),
            ]
            assert len(all_events(trail)) == 21
            assert of_python(b64decode(told[3]["proof"]), told[3]["checks"][0].split()[-1].strip("'")).event

    assert "secret" not in str(told)


def test_a_slow_store_shows_its_newest_events_at_once_and_says_how_much_of_it_was_read(tmp_path: Path) -> None:
    journal, is_slow, may_go_on = a_trail(tmp_path / "journal"), threading.Event(), threading.Event()
    with LokiDouble() as store:
        store.put(
            ExportLogsServiceRequest.FromString(
                encoded_request(HEADER, [raw_line({"event_type": "a"}, time_ns=OLD_NS)])
            )
        )
        deliver(journal, store)

        def letting_in(headers: dict[str, str]) -> bool:
            if trail.reading.size_bytes:
                is_slow.set()
                may_go_on.wait(60)
            return True

        with viewed(url_of(store), opened=lambda: open_store(url_of(store))) as trail:
            store.letting_in = letting_in
            is_slow.wait(60)
            newest = answers.events(trail, asking())["events"]
            assert [each["event_type"] for each in newest].count("http.request") == 6
            assert len({(each["stream_id"], each["seq"]) for each in newest}) == 21
            assert {each["service"] for each in newest} == {"feature-server"}
            assert answers.state(trail)["reading"]["size_bytes"] > 0
            assert not trail.reading.is_done
            may_go_on.set()
            until(lambda: trail.reading.is_done, "all of it")
            assert len(all_events(trail)) == 22


def put(store: LogStore, lines: list[bytes]) -> None:
    request = encoded_request(HEADER, lines)
    if isinstance(store, LokiDouble):
        store.put(ExportLogsServiceRequest.FromString(request))
    else:
        headers = {"Content-Type": "application/x-protobuf"}
        requests.post(f"{store.otlp_endpoint}/v1/logs", data=request, headers=headers, timeout=30).raise_for_status()
        store.query("*")  # makes them searchable


def test_following_a_store_asks_only_for_what_is_new_and_shows_each_event_once(
    store: LogStore, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, now = 10**9, time.time_ns()
    streams = {name: f"0199aabb-ccdd-7eef-8011-22334455667{name}" for name in range(4)}
    filled: list[ViewedTrail] = []
    fill = ViewedTrail._fill

    def counted(trail: ViewedTrail) -> None:
        filled.append(trail)
        fill(trail)

    monkeypatch.setattr(ViewedTrail, "_fill", counted)
    monkeypatch.setattr("otel_audit.viewing.trail._SHARE", 1)

    def lines(stream: int, numbers: range, time_ns: int) -> list[bytes]:
        event = {"event_type": "a", "outcome": "success"}
        return [raw_line(event, seq=seq, time_ns=time_ns, stream_id=streams[stream]) for seq in numbers]

    put(store, lines(0, range(1, 301), now - 3600 * second) + lines(1, range(1, 4), now - 7200 * second))
    put(store, lines(3, range(1, 2), now + 3600 * second))  # whose clock is ahead
    start = datetime.now(UTC) - timedelta(days=1)
    url = f"{url_of(store)}?start={start:%Y-%m-%dT%H:%M:%SZ}"
    with viewed(url) as trail, ThreadPoolExecutor(1) as server:

        def shown_now() -> list[tuple[str, int]]:
            with trail.index() as index:
                assert index is not None
                _, rows = index.rows("SELECT stream_id, seq FROM sought")
                return sorted((str(stream_id), int(str(seq))) for stream_id, seq in rows)

        def holds(*expected: tuple[int, range]) -> bool:
            trail.follow()
            found = server.submit(shown_now).result()  # as the server does, in a thread of its own
            assert len(set(found)) == len(found)
            return found == sorted((streams[stream], seq) for stream, numbers in expected for seq in numbers)

        ahead = (3, range(1, 2))
        until(lambda: holds((0, range(1, 301)), (1, range(1, 4)), ahead), "what was there")
        # More than a page of one time, and a line again.
        put(store, lines(0, range(301, 1402), now) + lines(0, range(300, 301), now))
        until(lambda: holds((0, range(1, 1402)), (1, range(1, 4)), ahead), "what is new")
        # A minute late, after newer ones; and by a service that begins.
        put(store, lines(0, range(1402, 1404), now - 60 * second) + lines(2, range(1, 3), now - 120 * second))
        until(lambda: holds((0, range(1, 1404)), (1, range(1, 4)), (2, range(1, 3)), ahead), "what is late")
        # A backlog of an hour, and then what is recorded now.
        put(store, lines(1, range(4, 9), now - 3600 * second))
        put(store, lines(1, range(9, 10), now))
        until(lambda: holds((0, range(1, 1404)), (1, range(1, 10)), (2, range(1, 3)), ahead), "the backlog")
        assert filled == [trail]

        # A backlog of a process that has ended.
        monkeypatch.setattr("otel_audit.viewing.trail._WHOLE_S", 0.1)
        put(store, lines(2, range(3, 5), now - 3600 * second))
        until(lambda: holds((0, range(1, 1404)), (1, range(1, 10)), (2, range(1, 5)), ahead), "all of it")
