"""What Feast's own recording gets wrong does not occur with `install(replace=True)`: its real application, served."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from feast import FeatureStore
from feast.feature_server import get_app
from feature_store import ASK, a_feature_store
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from starlette.responses import StreamingResponse
from test_feast_install_served import TOOL

from otel_audit import AuditLogger
from otel_audit.integrations.feast import install, uninstall
from otel_audit.policy import read_policy
from tests.chain_check import application_events, read_streams
from tests.integrations.serving import Served, a_logger, served
from tests.journal.slow_disk import SlowDisk
from tests.servers.polling import poll

TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
ENTITIES = ASK["entities"]


class Store(FeatureStore):
    """A store whose answers may be held back, and may fail."""

    def __init__(self, directory: Path) -> None:
        super().__init__(repo_path=str(directory))
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None

    def get_online_features(self, *given: Any, **named: Any) -> Any:
        self.entered.release()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        return super().get_online_features(*given, **named)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no answer comes."""
        while self.entered.acquire(blocking=False):  # of the requests before
            pass
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=30)


@dataclass
class Feast:
    """Feast's application, where it is served, and the directory of its journal."""

    app: Any
    store: Store
    server: Served
    audit: AuditLogger
    directory: Path
    seen: int = 0

    def ask(self, body: Any = ASK, **options: Any) -> int:
        """The status of the answer to a request for online features."""
        url = f"{self.server.url}/get-online-features"
        given = {"content": body} if isinstance(body, bytes) else {"json": body}
        return httpx.post(url, **given, **{"timeout": 60, "trust_env": False, **options}).status_code

    @asynccontextmanager
    async def session(self, headers: Mapping[str, str] | None = None) -> AsyncIterator[tuple[ClientSession, Any]]:
        """A session of MCP, and the headers of its next request, which may be changed."""
        async with (
            httpx.AsyncClient(headers=headers, timeout=60, trust_env=False, follow_redirects=True) as http,
            streamable_http_client(f"{self.server.url}/mcp", http_client=http) as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            yield session, http.headers

    def events(self, count: int) -> list[dict[str, Any]]:
        """The events since the last look, as soon as there are so many. More than that is a failure."""
        poll(lambda: self._count() - self.seen, until=lambda new: new >= count, what=f"{count} events")
        events = application_events(self.directory)[self.seen :]
        self.seen += len(events)
        assert len(events) == count, events
        return events

    def event(self) -> dict[str, Any]:
        return self.events(1)[0]

    def _count(self) -> int:
        """Without a look at the last line, which may be half written."""
        lines = b"".join(path.read_bytes() for path in self.directory.glob("*-*.0*.jsonl")).split(b"\n")[:-1]
        return sum(not line.startswith(b'{"system"') for line in lines)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("feast") / "store"
    a_feature_store(directory, sink="logger")
    return directory


@contextmanager
def serving(repository: Path, directory: Path, audit: AuditLogger) -> Iterator[Feast]:
    store = Store(repository)
    install(audit, replace=True)
    try:
        app = get_app(store)
    finally:
        uninstall()

    @app.get("/half")  # Feast has no such route: its own answers are short
    async def half() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"a"
            raise LookupError(TOKEN)

        return StreamingResponse(chunks())

    with served(app) as server:
        yield Feast(app, store, server, audit, directory)


@pytest.fixture(scope="module")
def shared(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feast]:
    directory = tmp_path_factory.mktemp("feast") / "audit"
    audit = a_logger(directory, settings={"trusted_proxies": "127.0.0.1"})
    with serving(repository, directory, audit) as feast:
        yield feast


@pytest.fixture
def feast(shared: Feast) -> Feast:
    """One application for all that can share it. What earlier tests left in its journal is not looked at."""
    shared.seen = len(application_events(shared.directory)) if shared.directory.exists() else 0
    return shared


def test_each_mcp_call_of_a_session_has_its_own_trace(feast: Feast) -> None:
    def traceparent(number: int) -> str:
        return f"00-{number:032x}-{number:016x}-01"

    async def work() -> None:
        async with feast.session() as (session, _):
            for number in (2, 3, 4):
                await session.call_tool(TOOL, ASK, meta={"traceparent": traceparent(number)})

    asyncio.run(work())

    calls = [event for event in feast.events(6) if event["event_type"] == "mcp.tools.call"]
    assert [call["trace_id"] for call in calls] == [f"{number:032x}" for number in (2, 3, 4)]


def test_a_request_whose_client_has_gone_is_cancelled(feast: Feast) -> None:
    with feast.store.held():
        with pytest.raises(httpx.ReadTimeout):
            feast.ask(timeout=0.3)
        feast.store.wait_until_entered()
        time.sleep(0.2)  # of a request that takes no 100 ms nobody asks whether its client is still there
        # On the same event loop, which has seen by now that the connection before has ended.
        assert httpx.get(f"{feast.server.url}/health", timeout=60, trust_env=False).status_code == 200

    event = feast.event()
    assert (event["outcome"], event["action"]["path"]) == ("cancelled", "/get-online-features")


def test_a_request_that_is_cancelled_or_out_of_time_is_cancelled(feast: Feast) -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(feast.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://feast", timeout=None) as client:
            await client.post("/get-online-features", json=ASK)

    async def work() -> None:
        cancelled = asyncio.create_task(ask())
        await asyncio.to_thread(feast.store.wait_until_entered)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await ask()

    with feast.store.held():
        runner = asyncio.Runner()
        runner.run(work())
    runner.close()  # the threads of the loop can end now

    events = feast.events(2)
    assert [event["outcome"] for event in events] == ["cancelled"] * 2
    assert ["status_code" in event for event in events] == [False] * 2


def test_a_request_that_feast_itself_gives_up_in_time_is_cancelled(feast: Feast) -> None:
    feast.store.error = TimeoutError(TOKEN)
    try:
        assert feast.ask() == 500
    finally:
        feast.store.error = None

    event = feast.event()
    assert (event["outcome"], event["error_type"], event["status_code"]) == ("cancelled", "TimeoutError", 500)


def test_a_body_that_fails_half_way_is_an_error(feast: Feast) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{feast.server.url}/half", timeout=60, trust_env=False)

    event = feast.event()
    assert (event["outcome"], event["error_type"], event["status_code"]) == ("error", "LookupError", 200)
    assert TOKEN not in text_of(feast)


def test_a_token_in_the_text_of_an_exception_is_nowhere(feast: Feast) -> None:
    async def call(arguments: Mapping[str, Any]) -> None:
        async with feast.session() as (session, _):
            answer = await session.call_tool(TOOL, dict(arguments))
            assert TOKEN in str(answer.content)  # as Feast tells the client

    unknown = {"features": [f"{TOKEN}:rating"], "entities": ENTITIES}
    assert feast.ask(unknown) == 404
    asyncio.run(call(unknown))
    feast.store.error = RuntimeError(f"401 for {TOKEN}")
    try:
        assert feast.ask() == 500
        asyncio.run(call(ASK))
    finally:
        feast.store.error = None

    ends = [(event["event_type"], event["outcome"], event.get("status_code")) for event in feast.events(6)]
    assert ends == [
        ("http.request", "failure", 404),
        ("http.request", "failure", 404),
        ("mcp.tools.call", "mcp_error", None),
        ("http.request", "error", 500),
        ("http.request", "error", 500),
        ("mcp.tools.call", "mcp_error", None),
    ]
    assert TOKEN not in text_of(feast)


def text_of(feast: Feast) -> str:
    """All that is in the directory of the journal."""
    return "".join(path.read_text(errors="replace") for path in feast.directory.iterdir())


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999", b"9" * 400])
def test_a_number_that_is_none_loses_no_event(feast: Feast, number: bytes) -> None:
    status = feast.ask(b'{"features":["ratings:rating"],"entities":{"driver_id":[%s]}}' % number)

    assert feast.event()["status_code"] == status


def test_lone_surrogates_lose_no_event(feast: Feast) -> None:
    """In a body, in a path that a server does not decode as it should, and in all that a call of MCP may name."""
    status = feast.ask(rb'{"features":["\ud800:rating"],"entities":{"driver_id":[1]}}')
    assert feast.event()["status_code"] == status

    async def ask(path: str) -> None:
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": b"/", "query_string": b"", "headers": []}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            pass

        with contextlib.suppress(UnicodeEncodeError):
            await feast.app({**scope, "http_version": "1.1", "client": ("127.0.0.1", 1)}, receive, send)

    asyncio.run(ask("/\udc80"))
    call_with_surrogates(feast)

    in_path, in_features, in_name = feast.events(3)
    assert in_path["action"]["path"] == "/\ufffd"
    assert (in_features["event_type"], in_features["outcome"]) == ("mcp.tools.call", "mcp_error")
    assert (in_name["action"]["mcp_tool"], in_name["outcome"]) == ("\ufffd", "mcp_error")


def call_with_surrogates(feast: Feast) -> None:
    url = f"{feast.server.url}/mcp"
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    client_info = {"name": "tests", "version": "7"}
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client_info}
    with httpx.Client(headers=headers, timeout=60, trust_env=False, follow_redirects=True) as http:
        answer = http.post(url, json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
        http.headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
        http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        for name, features in ((TOOL, r"\ud800:rating"), (r"\udfff", "ratings:rating")):
            arguments = f'{{"features":["{features}"],"entities":{{"driver_id":[NaN]}}}}'
            params = rf'{{"name":"{name}","_meta":{{"user":"\ud800"}},"arguments":{arguments}}}'
            body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}'
            http.post(url, content=body.encode())  # 500 where the SDK cannot encode its own answer


def test_the_first_address_that_a_client_names_is_not_believed(feast: Feast) -> None:
    said = {"X-Forwarded-For": "203.0.113.66, 192.0.2.7"}

    async def call() -> None:
        async with feast.session(said) as (session, _):
            await session.call_tool(TOOL, ASK)

    assert feast.ask(headers=said) == 200
    asyncio.run(call())

    request, _, of_mcp = feast.events(3)
    assert request["source"]["ip"] == "192.0.2.7"  # whom the trusted proxy saw
    assert of_mcp["source"]["ip"] == "127.0.0.1"


def test_a_token_that_nobody_has_verified_is_nobody(feast: Feast) -> None:
    headers = {"Authorization": "Bearer nonsense"}

    async def call() -> None:
        async with feast.session(headers) as (session, _):
            await session.call_tool(TOOL, ASK)

    assert feast.ask(headers=headers) == 200
    asyncio.run(call())

    assert [event["principal"]["username"] for event in feast.events(3)] == [""] * 3


def test_a_log_file_that_was_renamed_is_not_written_any_more(feast: Feast) -> None:
    assert feast.ask() == 200
    feast.event()
    (segment,) = feast.directory.glob("*-*.jsonl")
    before = application_events(feast.directory)
    away = segment.rename(segment.with_name("rotated.1"))

    poll(segment.exists, what="the file to be there again")
    size = away.stat().st_size
    assert feast.ask() == 200

    feast.event()
    assert application_events(feast.directory)[:-1] == before
    assert away.stat().st_size == size


def test_what_a_full_disk_loses_is_counted(feast: Feast, capfd: pytest.CaptureFixture[str]) -> None:
    assert feast.ask() == 200
    feast.event()
    (segment,) = feast.directory.glob("*-*.jsonl")
    dropped = feast.audit.stats().dropped

    with no_file_may_exceed(segment.stat().st_size):
        assert [feast.ask() for _ in range(3)] == [200] * 3
        poll(lambda: feast.audit.stats().dropped - dropped, until=lambda lost: lost >= 3, what="the losses")

    assert feast.audit.stats().dropped == dropped + 3
    assert "events are lost" in capfd.readouterr().err
    assert feast.ask() == 200
    feast.event()
    lines = [line for lines in read_streams(feast.directory).values() for line in lines]
    assert [line["gap"]["lines"] for line in lines if line.get("system") == "gap"][-1] == 3


@contextmanager
def no_file_may_exceed(size: int) -> Iterator[None]:
    """In the place of a disk that becomes full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_slow_disk_does_not_stall_the_event_loop(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    audit = a_logger(tmp_path / "audit", settings={"durability": "fsync"})
    with serving(repository, tmp_path / "audit", audit) as feast:
        disk.gate.clear()
        try:
            assert feast.ask() == 200
            disk.wait_until_entered()  # and the sync of its event lasts
            assert [feast.ask() for _ in range(3)] == [200] * 3
        finally:
            disk.gate.set()
        feast.events(4)


def test_a_collector_that_does_not_answer_does_not_keep_clients_waiting(repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        destination = {"export": "otlp", "endpoint": endpoint, "protocol": "http/protobuf", "batch_delay_s": 0.1}
        audit = a_logger(tmp_path / "audit", settings={**destination, "close_timeout_s": 1})
        with serving(repository, tmp_path / "audit", audit) as feast:
            assert feast.ask() == 200
            listening.settimeout(30)
            silent, _ = listening.accept()  # the batch is on its way, and stays there

            with silent:
                assert [feast.ask() for _ in range(3)] == [200] * 3
                feast.events(4)
                assert audit.stats().exported == 0


def test_successful_reads_can_be_left_out_over_mcp_too(repository: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY, encoding="utf-8")
    audit = a_logger(tmp_path / "audit", policy=read_policy(policy))

    async def call(feast: Feast) -> None:
        async with feast.session() as (session, _):
            await session.call_tool(TOOL, ASK)
            await session.call_tool(TOOL, {"features": ["none:such"], "entities": ENTITIES})

    with serving(repository, tmp_path / "audit", audit) as feast:
        assert feast.ask() == 200
        asyncio.run(call(feast))

        ends = [(event["event_type"], event["outcome"]) for event in feast.events(2)]
    assert ends == [("http.request", "failure"), ("mcp.tools.call", "mcp_error")]


POLICY = """
rules:
  - {outcome: success, route: /get-online-features, keep: false}
  - {outcome: success, tool: get_online_features*, keep: false}
"""
