"""Feast's real server over REST and MCP: what its own sink would have written is journalled and delivered, no more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from feature_store import ASK, a_feature_store
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.delivery.jsonl import as_given
from tests.chain_check import application_events, read_streams
from tests.servers.otlp_server import OtlpServer
from tests.servers.polling import poll
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import answers

SERVED = Path(__file__).with_name("served.py")
ROOT = SERVED.parents[3]
ENDED = {"uvicorn": -signal.SIGTERM, "gunicorn": 0}  # uvicorn ends by the signal that it got
END_S = 60.0
TOOL = "get_online_features_get_online_features_post"
PUSH = {
    "push_source_name": "pushed",
    "df": {"driver_id": [3], "rating": [1.0], "at": ["2026-01-01T00:00:00Z"]},
    "to": "online",
}


@dataclass
class Service:
    """Feast's server with the places where its events end up."""

    directory: Path
    url: str
    otlp: OtlpServer
    process: subprocess.Popen[bytes]

    def written_by_feast(self) -> list[str]:
        """What Feast's own file sink wrote."""
        return _lines(self.directory / "feast_audit.log")

    def exported(self) -> list[str]:
        """The lines of the JSONL export."""
        return _lines(self.directory / "export.jsonl")

    def delivered(self) -> list[str]:
        """The events of the LogRecords that the OTLP server has received, as Feast gave them."""
        records = [
            record
            for request in self.otlp.requests
            for resource in ExportLogsServiceRequest.FromString(request.body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        bodies = [record.body.string_value for record in records if not record.event_name.startswith("audit.")]
        return [as_given(body.encode()).decode() for body in bodies]

    def end(self) -> int:
        """The exit status after SIGTERM."""
        self.process.terminate()
        return self.process.wait(END_S)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@contextmanager
def served(directory: Path, server: str, mcp_transport: str = "http", **more: str) -> Iterator[Service]:
    """`served.py` with a store that asks for audit."""
    a_feature_store(directory / "store", mcp_transport)
    port = free_port()
    command = [sys.executable, SERVED, directory / "store", str(port), server, directory / "feast_audit.log"]
    with running(directory, command, port, **more) as service:
        yield service


@contextmanager
def running(directory: Path, command: Sequence[str | Path], port: int, **more: str) -> Iterator[Service]:
    """No batch is ever due, so that what arrives was sent by the end itself."""
    with OtlpServer() as otlp, (directory / "server.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
                "PYTHONPATH": str(ROOT),
                "OTEL_SERVICE_NAME": "feast",
                "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.base_url,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_AUDIT_DIR": str(directory / "audit"),
                "OTEL_AUDIT_EXPORT": "otlp,jsonl",
                "OTEL_AUDIT_JSONL_PATH": str(directory / "export.jsonl"),
                "OTEL_AUDIT_BATCH_DELAY_S": "600",
                "NO_PROXY": "*",
                **more,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that workers end with it, whatever happens
        )
        service = Service(directory, f"http://{LOOPBACK}:{port}", otlp, process)
        try:
            poll(lambda: _is_ready(service), what="Feast's server to answer")
            yield service
        except BaseException as error:
            error.add_note((directory / "server.log").read_text(errors="replace")[-4000:])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and so have its workers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_ready(service: Service) -> bool:
    assert service.process.poll() is None, f"ended with {service.process.returncode}"
    return answers(f"{service.url}/health")


def ask_over_rest(url: str) -> list[str]:
    """Requests that succeed, fail and are nonsense; path and status of each."""
    asked = []
    once = httpx.Limits(max_keepalive_connections=0)  # Feast raises behind its 404: uvicorn then cuts the connection
    with httpx.Client(base_url=url, timeout=60, trust_env=False, limits=once) as client:
        for number in range(5):
            name = {"X-Request-Id": f"request-{number}"}
            unknown = {"features": ["none:such"], "entities": {"driver_id": [number]}}
            asked += [
                client.post("/get-online-features", json=ASK, headers=name),
                client.post("/get-online-features", json=unknown, headers={"X-Forwarded-For": "192.0.2.7"}),
                client.post("/push", json=PUSH),
                client.post("/push", content=b"{"),
                client.get("/é\u2028%00"),
            ]
    return [f"{answer.request.url.path} {answer.status_code}" for answer in asked]


@asynccontextmanager
async def mcp_session(
    url: str, headers: Mapping[str, str] | None = None, transport: str = "http"
) -> AsyncIterator[ClientSession]:
    http = httpx.AsyncClient(headers=headers, timeout=60, trust_env=False, follow_redirects=True)
    over_http = streamable_http_client(f"{url}/mcp", http_client=http)
    over_sse = sse_client(f"{url}/sse", httpx_client_factory=lambda **_: http)
    async with (
        http if transport == "http" else contextlib.nullcontext(),  # the other one enters it by itself
        over_http if transport == "http" else over_sse as (read, write, *_),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session


async def ask_over_mcp(url: str, transport: str = "http") -> None:
    """One call that succeeds, and one that fails."""
    async with mcp_session(url, transport=transport) as session:
        done = await session.call_tool(TOOL, ASK)
        assert not done.isError, done
        failed = await session.call_tool(TOOL, {"features": ["none:such"], "entities": {"driver_id": [1]}})
        assert failed.isError, failed


def assert_all_is_where_it_should_be(service: Service) -> None:
    """In the journal, in the export and at the OTLP server are Feast's lines, byte for byte, each once."""
    of_feast = Counter(service.written_by_feast())
    assert Counter(service.exported()) == of_feast
    assert Counter(service.delivered()) == of_feast
    events = application_events(service.directory / "audit")
    assert len(events) == of_feast.total()
    assert len({event["event_id"] for event in events}) == len(events)


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_after_sigterm_every_rest_request_is_journalled_and_delivered_as_feast_would_have_written_it(
    tmp_path: Path, server: str
) -> None:
    with served(tmp_path, server) as service:
        asked = ask_over_rest(service.url)

        assert service.end() == ENDED[server]

        assert {answer.split()[-1] for answer in asked} >= {"200", "404", "422"}
        assert len(service.written_by_feast()) == len(asked)
        assert_all_is_where_it_should_be(service)
        headers = [events[0]["segment"] for events in read_streams(tmp_path / "audit").values()]
        assert service.process.pid not in {header["pid"] for header in headers} or server == "uvicorn"


def test_mcp_calls_and_the_requests_inside_them_are_delivered_as_feast_would_have_written_them(tmp_path: Path) -> None:
    with served(tmp_path, "uvicorn") as service:
        asyncio.run(ask_over_mcp(service.url))

        assert service.end() == ENDED["uvicorn"]

        assert_all_is_where_it_should_be(service)
        events = application_events(tmp_path / "audit")
        assert [(event["event_type"], event["outcome"]) for event in events] == [
            ("http.request", "success"),
            ("mcp.tools.call", "success"),
            ("http.request", "error"),  # as Feast sees it: the client got 404
            ("mcp.tools.call", "mcp_error"),
        ]
        assert [event["action"]["mcp_tool"] for event in events] == ["", TOOL, "", TOOL]
        for request, call in (events[:2], events[2:]):
            assert request["request_id"] == call["request_id"]
