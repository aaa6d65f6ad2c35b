"""`opentelemetry-instrument feast serve`, and the example: exactly one event a request and one a tool call."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from feast import feature_server
from feast.audit.audit_middleware import AuditLoggingMiddleware
from feast.infra.mcp_servers import mcp_server
from feature_store import ASK, a_feature_store
from test_feast_install_served import PUSH, ROOT, TOOL, Service, ask_over_mcp, ask_over_rest, running

from otel_audit.errors import ConfigError
from otel_audit.integrations.auto import FeastAuditor
from otel_audit.integrations.feast import install, uninstall
from tests.chain_check import application_events
from tests.recording import recorder
from tests.servers.ports import LOOPBACK, free_port

INSTRUMENT = Path(sys.executable).with_name("opentelemetry-instrument")
FEAST = Path(sys.executable).with_name("feast")
WITHOUT_SDK = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("LOGS", "METRICS", "TRACES")}
INSTRUMENTED = [INSTRUMENT, FEAST]
EXAMPLE = [sys.executable, ROOT / "examples" / "feast_server.py"]


def serving(
    directory: Path, command: list[Any], *, workers: int = 1, variables: dict[str, str] | None = None, **audit: Any
) -> AbstractContextManager[Service]:
    """The command line of Feast with `serve`, whose own events would be in its log."""
    a_feature_store(directory / "store", sink="file", file_path=str(directory / "feast_audit.log"), **audit)
    port = free_port()
    serve = ["serve", "--host", LOOPBACK, "--port", str(port), "--workers", str(workers), "--no-access-log"]
    whole = [*command, "--chdir", str(directory / "store"), *serve]
    return running(directory, whole, port, **WITHOUT_SDK, **(variables or {}))


def events_of(service: Service) -> list[dict[str, Any]]:
    """What is in the journal, when the same is at the OTLP server, each once, and nothing in Feast's log."""
    events = application_events(service.directory / "audit")
    ids = [event["event_id"] for event in events]
    assert len(set(ids)) == len(ids)
    assert len(service.delivered()) == len(events)
    assert not (service.directory / "feast_audit.log").exists()
    return events


@pytest.mark.parametrize("command", [INSTRUMENTED, EXAMPLE], ids=["instrumented", "example"])
def test_each_rest_request_to_two_workers_is_one_event_of_ours(tmp_path: Path, command: list[Any]) -> None:
    with serving(tmp_path, command, workers=2) as service:
        asked = ask_over_rest(service.url)

        assert service.end() == 0

        events = events_of(service)
        assert Counter(f"{event['action']['path']} {event['status_code']}" for event in events) == Counter(asked)
        assert {event["event_type"] for event in events} == {"http.request"}


def test_each_tool_call_and_the_request_inside_it_are_one_event_each_of_ours(tmp_path: Path) -> None:
    with serving(tmp_path, INSTRUMENTED) as service:
        asyncio.run(ask_over_mcp(service.url))

        assert service.end() == 0

        events = events_of(service)
        assert [(event["event_type"], event["outcome"]) for event in events] == [
            ("http.request", "success"),
            ("mcp.tools.call", "success"),
            ("http.request", "failure"),
            ("mcp.tools.call", "mcp_error"),
        ]
        for request, call in (events[:2], events[2:]):
            assert request["parent_id"] == call["event_id"]
            assert call["action"]["mcp_tool"] == TOOL


def test_where_successful_reads_are_left_out_feast_records_the_rest_and_nobody_else_does(tmp_path: Path) -> None:
    with serving(tmp_path, INSTRUMENTED, log_successful_reads=False) as service:
        httpx.post(f"{service.url}/get-online-features", json=ASK, timeout=60, trust_env=False)
        httpx.post(f"{service.url}/push", json=PUSH, timeout=60, trust_env=False)
        asyncio.run(ask_over_mcp(service.url))

        assert service.end() == 0

        events = events_of(service)
        assert [(event["event_type"], event["outcome"]) for event in events] == [
            ("http.request", "success"),
            ("mcp.tools.call", "success"),  # Feast does not take it for a read
            ("http.request", "error"),  # the request inside the next: as Feast sees it
            ("mcp.tools.call", "mcp_error"),
        ]
        assert events[0]["action"]["path"] == "/push"


def test_without_audit_logging_in_the_store_the_other_instrumentors_record_each_request(tmp_path: Path) -> None:
    with serving(tmp_path, INSTRUMENTED, enabled=False) as service:
        asked = ask_over_rest(service.url)

        assert service.end() == 0

        requests = [event for event in events_of(service) if event["action"]["path"] != "/health"]
        assert Counter(f"{event['action']['path']} {event['status_code']}" for event in requests) == Counter(asked)


def test_a_wrong_setting_ends_the_server_before_it_answers(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="ended with 1"),
        serving(tmp_path, INSTRUMENTED, variables={"OTEL_AUDIT_BATCH_COUNT": "many"}),
    ):
        pass

    said = (tmp_path / "server.log").read_text(encoding="utf-8")
    assert "OTEL_AUDIT_BATCH_COUNT: expected" in said
    assert not (tmp_path / "audit").exists()


def test_a_command_that_serves_no_features_does_not_import_feast(tmp_path: Path) -> None:
    code = "import sys, otel_audit.integrations.auto; print('feast' in sys.modules)"

    done = subprocess.run(
        [INSTRUMENT, sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **WITHOUT_SDK},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.stdout == "False\n", done.stderr


@pytest.fixture
def auditor() -> Iterator[FeastAuditor]:
    auditor = FeastAuditor()
    yield auditor
    if auditor.is_instrumented_by_opentelemetry:
        auditor.uninstrument()
    uninstall()


def recorded_by_us(app: Any) -> bool:
    by_feast = any(each.cls is AuditLoggingMiddleware for each in app.user_middleware)
    by_us = type(app).__call__ is not FastAPI.__call__
    assert by_us is not by_feast
    return by_us


def test_uninstrument_gives_feast_its_own_recording_back(tmp_path: Path, auditor: FeastAuditor) -> None:
    store = a_feature_store(tmp_path / "store")
    before = feature_server.get_app, mcp_server._wrap_call_tool_handler
    with recorder(tmp_path / "audit") as audit:
        auditor.instrument(audit=audit)
        assert recorded_by_us(feature_server.get_app(store=store))

        auditor.uninstrument()

        assert (feature_server.get_app, mcp_server._wrap_call_tool_handler) == before
        assert not recorded_by_us(feature_server.get_app(store))


def test_an_application_that_was_made_leaves_nothing_installed(tmp_path: Path, auditor: FeastAuditor) -> None:
    stores = [a_feature_store(tmp_path / str(kept), log_successful_reads=kept) for kept in (True, False)]
    with recorder(tmp_path / "audit") as audit, recorder(tmp_path / "own") as own:
        auditor.instrument(audit=audit)

        assert [recorded_by_us(feature_server.get_app(store)) for store in (*stores, *stores)] == [True, False] * 2

        assert install(own) is own


def test_an_installation_of_the_callers_own_stays_as_it_is(tmp_path: Path, auditor: FeastAuditor) -> None:
    store = a_feature_store(tmp_path / "store")
    with recorder(tmp_path / "own") as own, recorder(tmp_path / "audit") as audit:
        install(own)
        auditor.instrument(audit=audit)

        assert not recorded_by_us(feature_server.get_app(store))
        assert install() is own


def test_a_logger_that_cannot_be_made_stops_the_making_of_an_application(
    tmp_path: Path, auditor: FeastAuditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_feature_store(tmp_path / "store")
    monkeypatch.setenv("OTEL_AUDIT_ON_LOSS", "maybe")
    auditor.instrument()

    with pytest.raises(ConfigError, match="OTEL_AUDIT_ON_LOSS: expected"):
        feature_server.get_app(store)


def test_what_feast_leaves_out_no_other_instrumentor_records(tmp_path: Path) -> None:
    with serving(tmp_path, INSTRUMENTED) as service:
        for path in ("/health", "/docs", "/openapi.json"):
            assert httpx.get(service.url + path, timeout=60, trust_env=False).status_code == 200

        assert service.end() == 0

        assert events_of(service) == []
