"""Audited servers as processes, and the events that they left in their journals."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sdk import IS_SDK1, MODES, SERVERS

from tests.no_skip import pytest_make_collect_report, pytest_runtest_makereport
from tests.servers.polling import poll
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess

if IS_SDK1:
    import client_sdk1 as client
else:
    import client_sdk2 as client

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]

collect_ignore = ["test_sdk2.py", "test_fastmcp.py", "test_fastmcp_authz.py"] if IS_SDK1 else ["test_sdk1.py"]

SERVICE = Path(__file__).with_name("service.py")
REPOSITORY = SERVICE.parents[3]
TOKEN = "token-of-alice"

Connect = Callable[..., AbstractAsyncContextManager["client.Session"]]


@dataclass
class Service:
    """A server that runs, and the directory of its journal."""

    name: str
    directory: Path
    connect: Connect
    url: str = ""
    seen: int = 0

    def events(self, count: int) -> list[dict[str, Any]]:
        """The events since the last look, as soon as there are so many. More than that is a failure."""
        poll(lambda: len(self.all_events()) - self.seen, until=lambda new: new >= count, what=f"{count} events")
        events = self.all_events()[self.seen :]
        self.seen += len(events)
        assert len(events) == count, events
        return events

    def event(self) -> dict[str, Any]:
        return self.events(1)[0]

    def wait_for(self, count: int, event_type: str) -> list[dict[str, Any]]:
        """The events of a type, as soon as there are so many, and no request is under way that they name."""

        def found() -> list[dict[str, Any]]:
            events = self.all_events()
            known = {event["event_id"] for event in events}
            of_type = [event for event in events if event["event_type"] == event_type]
            return [event for event in of_type if event.get("parent_id") in known]

        return poll(found, until=lambda events: len(events) >= count, what=f"{count} events {event_type}")

    def text(self) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in self.directory.rglob("*.jsonl"))

    def all_events(self) -> list[dict[str, Any]]:
        """What is in the journal now, without what the journal says of itself."""
        lines = self.text().split("\n")
        events = [json.loads(line) for line in lines if line.endswith("}")]
        own = [event for event in events if not event.get("event_type", "audit.").startswith("audit.")]
        return sorted(own, key=lambda event: (event["stream_id"], event["seq"]))


def environment_of(directory: Path) -> dict[str, str]:
    return {
        "OTEL_AUDIT_DIR": str(directory),
        "OTEL_AUDIT_EXPORT": "none",
        "OTEL_SERVICE_NAME": "mcp-tests",
        "PYTHONPATH": os.pathsep.join([str(SERVICE.parent), str(REPOSITORY)]),
    }


@pytest.fixture(scope="session")
def run_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Starts servers over HTTP; they end with the tests."""
    running: list[ServerProcess] = []

    def start(name: str, extra: Mapping[str, str] | None = None) -> Service:
        directory = tmp_path_factory.mktemp(name)
        port = free_port()
        process = ServerProcess(
            [sys.executable, SERVICE, name, str(port)],
            log=directory.with_suffix(".log"),
            ready=lambda: _listens(port),
        )
        over_sse = (extra or {}).get("TRANSPORT") == "sse"
        url = f"http://{LOOPBACK}:{port}/{'sse' if over_sse else 'mcp'}"
        process.start({**environment_of(directory), **(extra or {})})
        running.append(process)

        @asynccontextmanager
        async def connect(
            mode: str = MODES[0], headers: Mapping[str, str] | None = None, token: str | None = TOKEN
        ) -> AsyncIterator[client.Session]:
            sent = {} if headers is None else headers  # read at each request: a test may change it
            given = {} if token is None else {"Authorization": f"Bearer {token}"}
            over = client.over_sse if over_sse else client.over_http
            async with over(url, lambda: {**given, **sent}, mode) as session:
                yield session

        return Service(name, directory, connect, url)

    yield start
    for process in running:
        process.kill()  # what was answered is on disk


@pytest.fixture(scope="session", params=SERVERS)
def shared(request: pytest.FixtureRequest, run_service: Callable[..., Service]) -> Service:
    started: Service = run_service(request.param)
    return started


@pytest.fixture
def service(shared: Service) -> Service:
    """A server over HTTP. What earlier tests left in its journal is not looked at."""
    shared.seen = len(shared.all_events())
    return shared


@pytest.fixture(params=SERVERS)
def on_stdio(request: pytest.FixtureRequest, tmp_path: Path) -> Service:
    """A server that each connection starts anew, at the other end of a pipe."""
    command = [sys.executable, str(SERVICE), request.param, "stdio"]

    def connect(mode: str = MODES[0]) -> AbstractAsyncContextManager[client.Session]:
        return client.over_stdio(command, environment_of(tmp_path), mode)

    return Service(request.param, tmp_path, connect)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0
