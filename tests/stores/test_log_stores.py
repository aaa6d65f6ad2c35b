"""A trail in a log store: a real VictoriaLogs, and a double of Loki that answers as a real one was recorded."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.journal.line import Line
from otel_audit.records.encoding import encoded_request
from otel_audit.stores import victorialogs
from otel_audit.stores.endpoint import EndpointUrl
from otel_audit.stores.location import open_store
from otel_audit.stores.loki import LokiStore
from otel_audit.stores.store import ForeignRecord, Kind, Remains, Store, Stored, StoreUnreadable
from otel_audit.stores.victorialogs import VictoriaLogsStore
from tests.journal_lines import HEADER, STREAM_ID, raw_line
from tests.servers import VictoriaLogs
from tests.servers.certificates import Authority
from tests.servers.loki import LokiDouble
from tests.servers.otlp_server import Answer, OtlpServer
from tests.stores.archives import contents, headers_of, some_streams

TIME_NS = 1790000000123456789
VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / "loki.json").read_text())
END = "2026-09-21T14:13:18Z"  # after the line of three seconds before TIME_NS, and before the next
PATH, BEGIN_NS, END_NS = "/loki/api/v1/query_range", 1795000000000000000, 1796000000000000000
RECORDED = {each["case"]: each for each in VECTORS}


def lines_at(*times_ns: int) -> list[bytes]:
    return [raw_line({"event_type": "a"}, seq=seq, time_ns=time_ns) for seq, time_ns in enumerate(times_ns, 1)]


def crowded(moments: int, lines: int) -> list[bytes]:
    """So many times, and so many lines that share each of them."""
    return lines_at(*(TIME_NS + moment for moment in range(moments) for _ in range(lines)))


def as_message(request: dict[str, Any]) -> ExportLogsServiceRequest:
    copy = json.loads(json.dumps(request))
    for scope in (scope for logs in copy["resourceLogs"] for scope in logs["scopeLogs"]):
        for record in scope["logRecords"]:
            for key in record.keys() & {"traceId", "spanId"}:
                record[key] = base64.b64encode(bytes.fromhex(record[key])).decode()
    return ParseDict(copy, ExportLogsServiceRequest())


@pytest.fixture
def loki() -> Iterator[LokiDouble]:
    with LokiDouble() as running:
        yield running


@pytest.fixture
def victorialogs_server(tmp_path: Path) -> Iterator[VictoriaLogs]:
    with VictoriaLogs(tmp_path / "victorialogs") as running:
        yield running


def put(store: LokiDouble | VictoriaLogs, lines: list[bytes], header: Any = HEADER) -> None:
    request = encoded_request(header, lines)
    if isinstance(store, LokiDouble):
        store.put(ExportLogsServiceRequest.FromString(request))
        return
    sent = requests.post(
        f"{store.otlp_endpoint}/v1/logs",
        data=request,
        headers={"Content-Type": "application/x-protobuf"},
        timeout=30,
    )
    sent.raise_for_status()
    store.query("*")  # makes them searchable


def opened(store: LokiDouble | VictoriaLogs, options: str = "") -> Store:
    kind = "loki" if isinstance(store, LokiDouble) else "victorialogs"
    return open_store(f"{kind}+{store.base_url}{options}")


def loki_store(loki: LokiDouble, options: str = "", *, page_lines: int = 1000) -> LokiStore:
    url = EndpointUrl.parse(f"loki+{loki.base_url}{options}")
    return LokiStore(url, now_ns=lambda: TIME_NS + 10**9, page_lines=page_lines, pause=lambda seconds: None)


@pytest.mark.parametrize("case", ["accepted", "odd-bodies", "duplicate-sent-twice-1", "colliding-keys", "zero-time"])
def test_the_double_answers_as_the_recorded_loki(loki: LokiDouble, case: str) -> None:
    recorded = RECORDED[case]
    loki.put(as_message(recorded["request"]))
    loki.put(as_message(recorded["request"]))
    path = (
        f"/loki/api/v1/query_range?query={recorded['query']['query']}&start=1795000000000000000&end=1796000000000000000"
    )

    status, body = loki.answer(path, {})

    expected = recorded["query"]["answer"]["data"]["result"]
    assert status == 200
    assert ordered(json.loads(body)["data"]["result"]) == ordered(expected)


def test_the_double_pages_as_the_recorded_loki(loki: LokiDouble) -> None:
    recorded = RECORDED["paging"]
    loki.put(as_message(recorded["request"]))

    for page in recorded["pages"]:
        path = f'{PATH}?query={{service_name="v-page"}}&start={page["start"]}&end={END_NS}&limit={page["limit"]}'
        assert ordered(json.loads(loki.answer(path, {})[1])["data"]["result"]) == ordered(
            page["answer"]["data"]["result"]
        )


def ordered(result: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(stream, sort_keys=True) for stream in result)


@pytest.mark.parametrize("page_lines", [3, 4, 5, 7, 12, 100])
def test_no_line_is_lost_between_the_pages_of_loki_however_many_share_a_time(loki: LokiDouble, page_lines: int) -> None:
    lines = crowded(4, 6)
    put(loki, lines)

    with loki_store(loki, page_lines=page_lines) as store:
        assert contents(list(store.lines_of(STREAM_ID))) == lines


def test_loki_is_asked_once_for_its_newest_lines(loki: LokiDouble) -> None:
    lines = lines_at(*(TIME_NS - number * 10**9 for number in range(20)))
    put(loki, lines)

    with loki_store(loki, f"?end={END}") as store:
        assert {line.content for line in lines_of(store.newest(5))} == set(lines[3:8])
    assert len(loki.asked) == 1


@pytest.mark.processes
def test_the_newest_lines_of_victorialogs_come_without_a_search_through_the_others(
    victorialogs_server: VictoriaLogs,
) -> None:
    lines = lines_at(*(TIME_NS - number * 10**9 for number in range(20)))
    put(victorialogs_server, lines)

    for options, expected in (("", lines[:5]), (f"?end={END}", lines[3:8]), (f"?start={END}", lines[:3])):
        with opened(victorialogs_server, options) as store:
            assert isinstance(store, VictoriaLogsStore)
            assert {line.content for line in lines_of(store.newest(5))} == set(expected)


def lines_of(found: Iterable[tuple[Stored, str]]) -> Iterator[Line]:
    for stored, service in found:
        assert service == "feature-server"
        assert isinstance(stored, tuple)
        assert isinstance(stored[1], Line)
        yield stored[1]


def test_half_a_surrogate_from_victorialogs_is_read() -> None:
    row = b'{"_msg":"\\ud800","_time":"2026-01-31T12:00:00Z","service.name":"shop"}\n'
    with OtlpServer() as server:
        server.will_answer(Answer(200, row))
        with open_store(f"victorialogs+{server.base_url}") as store:
            assert isinstance(store, VictoriaLogsStore)
            [(stored, _)] = store.newest(1)
    assert isinstance(stored, ForeignRecord)


def test_a_range_longer_than_loki_answers_for_is_asked_for_in_parts(loki: LokiDouble) -> None:
    year_ns = 365 * 86_400 * 10**9
    lines = lines_at(TIME_NS - 5 * year_ns, TIME_NS - year_ns, TIME_NS)
    put(loki, lines)

    with loki_store(loki) as store:
        assert store.kind is Kind.LOKI
        assert contents(list(store.lines_of(STREAM_ID))) == lines
    with loki_store(loki, "?start=2026-01-01T00:00:00Z&end=2027-01-01T00:00:00Z") as store:
        assert contents(list(store.lines_of(STREAM_ID))) == lines[2:]


def test_loki_gives_back_the_lines_of_a_journal(loki: LokiDouble, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    streams = some_streams(tmp_path / "journal")
    for stream_id, lines in streams.items():
        put(loki, lines, headers_of(tmp_path / "journal")[stream_id])

    with opened(loki, "?start=2026-01-01T00:00:00Z") as store:
        assert {each: contents(list(store.lines_of(each))) for each in store.streams()} == streams


def test_a_store_that_is_busy_is_asked_again(loki: LokiDouble) -> None:
    lines = lines_at(TIME_NS)
    put(loki, lines)
    loki.answers_left_out = 3

    with loki_store(loki) as store:
        assert contents(list(store.lines_of(STREAM_ID))) == lines


def test_basic_authentication_bearer_and_tenant_are_sent_and_not_shown(
    loki: LokiDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    seen: list[tuple[str | None, str | None]] = []

    def letting_in(headers: dict[str, str]) -> bool:
        seen.append((headers.get("Authorization"), headers.get("X-Scope-OrgID")))
        return headers.get("X-Scope-OrgID") == "audit"

    loki.letting_in = letting_in
    host = loki.base_url.removeprefix("http://")
    for url in (
        f"loki+http://ann:s%40cret@{host}?tenant=audit&start=2026-01-01T00:00:00Z",
        f"loki+http://{host}?tenant=audit&bearer_file={token}&start=2026-01-01T00:00:00Z",
        f"loki+http://{host}?tenant=audit&start=2026-01-01T00:00:00Z",
    ):
        with open_store(url) as store:
            assert list(store.streams()) == []
            assert store.where == f"loki+http://{host}"

    basic = "Basic " + base64.b64encode(b"ann:s@cret").decode()
    assert {each[0] for each in seen} == {basic, "Bearer t0ken", None}
    with opened(loki, "?tenant=none") as store, pytest.raises(StoreUnreadable, match=r"expected to be let in, got 401"):
        store.streams()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(302, headers=(("Location", "http://127.0.0.1:1/"),)), "leads elsewhere"),
        (Answer(200, b"<html>log in</html>"), "expected a list of streams"),
        (Answer(200, b'{"status":"success","data":{"resultType":"matrix","result":[]}}'), "expected streams of lines"),
        (Answer(400, b"parse error"), "got 400: 'parse error'"),
        (Answer(200, b'{"status"', cut_after_bytes=5), "expected an answer"),
    ],
    ids=["redirect", "login page", "another answer", "error", "cut off"],
)
def test_an_answer_that_is_none_is_said_and_never_taken_for_an_empty_store(answer: Answer, said: str) -> None:
    with OtlpServer() as server:
        server.will_answer(*[answer] * 5)
        store = LokiStore(EndpointUrl.parse(f"loki+{server.base_url}"), pause=lambda seconds: None)
        with closing(store), pytest.raises(StoreUnreadable, match=said):
            store.streams()


def test_a_server_is_believed_that_the_given_authority_certifies_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    ours, theirs = Authority(tmp_path / "ours", "ours"), Authority(tmp_path / "theirs", "theirs")
    server_key, client_key = ours.issue("localhost"), ours.issue("client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_key.certificate, server_key.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ours.bundle)
    empty = Answer(200, b'{"status":"success","data":{"resultType":"streams","result":[]}}')
    client = f"cert_file={client_key.certificate}&key_file={client_key.key}&start=2026-09-01T00:00:00Z"
    client += "&end=2026-09-02T00:00:00Z"

    with OtlpServer(context) as server:
        server.will_answer(*[empty] * 3)
        for authority, is_read in ((ours, True), (theirs, False)):
            url = f"loki+https://127.0.0.1:{server.port}?ca_file={authority.bundle}&{client}"
            store = LokiStore(EndpointUrl.parse(url), pause=lambda seconds: None)
            with closing(store):
                if is_read:
                    assert list(store.streams()) == []
                else:
                    with pytest.raises(StoreUnreadable, match="SSL"):
                        store.streams()

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("loki+ftp://host", "expected loki"),
        ("loki+http://", "expected loki"),
        ("victorialogs+http://host?token=x", "got 'token'"),
        ("loki+http://host?start=yesterday", "expected a time"),
        ("loki+http://host?bearer_file=/nowhere", "expected a file with a bearer token"),
    ],
)
def test_a_url_that_cannot_be_understood_is_said(url: str, said: str) -> None:
    with pytest.raises(StoreUnreadable, match=said):
        open_store(url)


@pytest.mark.processes
@pytest.mark.collector
def test_victorialogs_gives_back_the_lines_of_a_journal(victorialogs_server: VictoriaLogs, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    streams = some_streams(tmp_path / "journal")
    for stream_id, lines in streams.items():
        put(victorialogs_server, lines, headers_of(tmp_path / "journal")[stream_id])
        put(victorialogs_server, lines[:5], headers_of(tmp_path / "journal")[stream_id])  # some twice

    with opened(victorialogs_server) as store:
        assert store.kind is Kind.VICTORIALOGS
        assert {each: contents(list(store.lines_of(each))) for each in store.streams()} == streams
        assert list(store.others()) == []


@pytest.mark.processes
@pytest.mark.collector
def test_no_line_is_lost_between_the_windows_of_victorialogs_however_many_share_a_time(
    victorialogs_server: VictoriaLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(victorialogs_server) as store:
        assert list(store.streams()) == []
    lines = crowded(5, 6)
    put(victorialogs_server, lines)

    for window_lines in (1, 5, 6, 7, 13):
        monkeypatch.setattr(victorialogs, "_WINDOW_LINES", window_lines)
        with opened(victorialogs_server) as store:
            assert contents(list(store.lines_of(STREAM_ID))) == lines
    with opened(victorialogs_server, '?query="audit.sequence.number":=3') as store:
        assert [each.seq for each in store.lines_of(STREAM_ID) if isinstance(each, Line)] == [3]
    with opened(victorialogs_server, "?end=2026-09-21T00:00:00Z") as store:
        assert list(store.streams()) == []


@pytest.mark.processes
@pytest.mark.collector
def test_a_body_that_was_changed_in_victorialogs_is_the_remains_of_its_line(victorialogs_server: VictoriaLogs) -> None:
    [line] = lines_at(TIME_NS)
    request = ExportLogsServiceRequest.FromString(encoded_request(HEADER, [line]))
    request.resource_logs[0].scope_logs[0].log_records[0].body.string_value = line[:40].decode()
    requests.post(
        f"{victorialogs_server.otlp_endpoint}/v1/logs",
        data=request.SerializeToString(),
        headers={"Content-Type": "application/x-protobuf"},
        timeout=30,
    ).raise_for_status()
    victorialogs_server.query("*")

    with opened(victorialogs_server) as store:
        [remains] = store.lines_of(STREAM_ID)

    assert isinstance(remains, Remains)
    assert remains[:3] == (STREAM_ID, 1, line[:40])


def test_an_answer_of_victorialogs_with_fewer_lines_than_it_counted_is_said() -> None:
    with OtlpServer() as server:
        extent = b'{"first":"2026-09-21T14:13:20Z","last":"2026-09-21T14:13:20Z","lines":"2"}\n'
        count, row = b'{"lines":"2"}\n', b'{"_msg":"x","_time":"2026-09-21T14:13:20Z"}\n'
        server.will_answer(*(Answer(200, body) for body in (extent, count, row, count)))
        with opened_at(server) as store, pytest.raises(StoreUnreadable, match=r"expected 2 lines .*, got 1"):
            store.streams()


def opened_at(server: OtlpServer) -> Store:
    return open_store(f"victorialogs+{server.base_url}")
