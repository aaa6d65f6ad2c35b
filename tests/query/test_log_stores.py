"""Filters go to the log stores in their own language, and the answers are those of the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import re2
import requests
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit import AuditEvent, AuditLogger, AuditPrincipal, AuditResource
from otel_audit.event import AuditAction
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import WORDS, Filters, Place
from otel_audit.records.encoding import encoded_request
from otel_audit.stores.location import open_store
from tests.recording import a_trail
from tests.servers import VictoriaLogs
from tests.servers.loki import LokiDouble
from tests.stores.archives import headers_of, journal_lines

SINCE_NS = 1_790_000_000_000_000_000
QUESTIONS = 20
ODD = [
    "alice", "CORP\\dave", 'a"b', "x+y@z", "{", "}", "|", "`", "a|b", "[a-z]", ".*", "^a$", "(?i)ALICE", "a\nb", "\t",
    "Ünï", "\u2028", "\U0001f600", "\\u0061lice", "%", "_", "$(x)", "{service_name=~\".+\"}", "'", "/a/b", "12345",
    "1e3", "İ", "K", "ſ", "\x7f", "\ufeff", "*", "a*b",
]  # fmt: skip
names = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def logged(directory: Path, values: Sequence[str]) -> None:
    """Log an event for each text, which stands in every field that can be asked for."""
    for service in ("shop", "bank|{x}"):
        with AuditLogger(a_trail(directory, service_name=service, ledger=False)) as audit:
            for number, text in enumerate(values):
                audit.log(
                    AuditEvent(
                        event_type="http.request" if number % 2 else text or "other",
                        outcome=["success", "deny", "odd", text][number % 4],
                        request_id=text,
                        principal=AuditPrincipal(username=text, id=text[::-1] or None, on_behalf_of=text),
                        action=AuditAction(mcp_tool=text, path=text),
                        resource=AuditResource(type="table", name=text),
                        detail=f"it was {text}",
                    )
                )


def questions(values: Sequence[str], times: Sequence[int]) -> Iterator[Filters]:
    words = [*values, *(f"*{value[1:]}" for value in values), *(f"table/{value}" for value in values[:3]), "*a*"]
    for number, word in enumerate(words):
        name = ["actor", "on_behalf_of", "tool", "path", "target", "request", "type", "outcome"][number % 8]
        yield Filters({name: [word]})
        yield Filters(text=word.upper(), since_ns=times[number % len(times)])
    yield Filters({"actor": values[:3], "outcome": ["denied", "odd"]}, until_ns=times[len(times) // 2])
    for service in ("shop", "bank|{x}", "*{x*", "sho"):
        yield Filters({"service": [service]}, since_ns=times[1], until_ns=times[-1])
    yield Filters({name: ["*"] for name in WORDS if name != "trace"})
    yield Filters()


def answer(trail: TrailDatabase, filters: Filters) -> list[tuple[bytes, str]]:
    """Return the lines and services that are found."""
    lines = [each.line for each in trail.find(filters)]
    names, rows = trail.rows(*trail.select(filters))
    return list(zip(lines, [str(row[names.index("service")]) for row in rows], strict=True))


def asked(url: str, filters: Filters) -> list[tuple[bytes, str]]:
    """Return the answer of a store that is asked for no more than that."""
    with open_store(url) as store, TrailDatabase([store], asked=filters) as trail:
        return answer(trail, filters)


def put(journal: Path, send: Callable[[bytes], object]) -> None:
    headers = headers_of(journal)
    for stream_id, lines in journal_lines(journal).items():
        send(encoded_request(headers[stream_id], lines))


def holds(journal: Path, url: str, values: Sequence[str]) -> None:
    """Check that a store gives the answers of the journal to a selection of questions."""
    with open_store(journal) as store, TrailDatabase([store]) as trail:
        times = sorted({each.place.time_ns for each in trail.find(Filters())})
        chosen = list(questions(values, times))
        chosen = chosen[:: max(1, len(chosen) // QUESTIONS)]
        for each in [*chosen, Filters(before=Place(times[len(times) // 2], "ffffffff", 0)), Filters()]:
            assert asked(url, each) == answer(trail, each), each
        assert {service for _, service in answer(trail, Filters())} == {"shop", "bank|{x}"}


@pytest.mark.slow
@settings(max_examples=2, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(values=st.lists(names, min_size=3, max_size=20))
@example(values=ODD)
def test_loki_answers_as_the_journal(values: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    journal = tmp_path_factory.mktemp("journal")
    logged(journal, values)
    with LokiDouble() as loki:
        put(journal, lambda request: loki.put(ExportLogsServiceRequest.FromString(request)))

        start = datetime.now(UTC) - timedelta(days=1)
        holds(journal, f"loki+{loki.base_url}?start={start:%Y-%m-%dT%H:%M:%SZ}", values)


def test_loki_is_asked_for_no_more_than_what_is_sought(tmp_path: Path) -> None:
    logged(tmp_path, ["alice", "bob"])
    with LokiDouble() as loki:
        put(tmp_path, lambda request: loki.put(ExportLogsServiceRequest.FromString(request)))
        asked(f"loki+{loki.base_url}", Filters({"actor": ["alice"]}, since_ns=SINCE_NS, until_ns=SINCE_NS + 5))

        [sent] = loki.asked
        assert (sent["start"], sent["end"]) == (str(SINCE_NS), str(SINCE_NS + 5))
        sought = '{service_name=~".+"} |~ "alice|\\\\x{5c}u" | audit_sequence_stream_id!=""'
        assert sent["query"] == f"{sought} | keep service_name"


@pytest.mark.processes
@pytest.mark.collector
@settings(max_examples=1, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(values=st.lists(names, min_size=20, max_size=40))
@example(values=ODD)
def test_victorialogs_answers_as_the_journal(values: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    journal = tmp_path_factory.mktemp("journal")
    logged(journal, values)
    with VictoriaLogs(tmp_path_factory.mktemp("store")) as server:

        def send(request: bytes) -> None:
            headers = {"Content-Type": "application/x-protobuf"}
            url = f"{server.otlp_endpoint}/v1/logs"
            requests.post(url, data=request, headers=headers, timeout=30).raise_for_status()

        put(journal, send)
        server.query("*")  # makes them searchable

        holds(journal, f"victorialogs+{server.base_url}", values)


@given(text=names, other=names)
def test_a_line_matches_what_a_store_is_asked_for_it(text: str, other: str) -> None:
    principal = AuditPrincipal(username=text)
    line = AuditEvent(
        event_type="x", outcome="deny", principal=principal, action=AuditAction(mcp_tool=f"{text} and {other}")
    ).to_jsonl()
    sought = Filters(
        {"actor": [text], "tool": [f"{text}*{other}"], "outcome": ["den*"], "service": [text]},
        text=text.upper() if text.isascii() else text,
    ).sought()

    for pattern in [*sought.patterns, sought.services]:
        assert pattern.isascii()
        assert not {'"', "'", "`"} & set(pattern)
    assert all(re2.search(pattern, line) for pattern in sought.patterns), sought
    assert re2.fullmatch(sought.services, text)
