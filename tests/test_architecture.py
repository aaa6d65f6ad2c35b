"""docs/architecture.md says the truth: its files are there, and its steps are taken in its order."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import otel_audit
from tests.servers.otlp_server import OtlpServer
from tests.walkthrough import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
STEP = re.compile(r"^\d+\. `(?P<file>otel_audit/[\w/]+\.py)`, `(?P<function>[\w.]+)`", re.MULTILINE)
MOST_FILES = 8

Step = tuple[str, str]


def steps_of(title: str) -> list[Step]:
    """The numbered steps below a heading, as file and function, without the name of its class."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    return [(match["file"], match["function"].rpartition(".")[2]) for match in STEP.finditer(section)]


@contextmanager
def first_calls(functions: list[Step]) -> Iterator[list[Step]]:
    """Which of these functions are called inside, on any thread, in the order of their first calls."""
    seen: list[Step] = []
    wanted = set(functions)

    def note(frame: FrameType, kind: str, _: Any) -> None:
        if kind != "call":
            return
        code = frame.f_code
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT):
            step = (path.relative_to(ROOT).as_posix(), code.co_name)
            if step in wanted and step not in seen:
                seen.append(step)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`((?:otel_audit|tests)/[\w/]*(?:\.py)?)`", PAGE))

    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_way_of_an_event_is_taken_in_the_order_of_the_page(tmp_path: Path) -> None:
    steps = steps_of("The way of one event")
    assert len({file for file, _ in steps}) <= MOST_FILES

    with OtlpServer() as server, first_calls(steps) as calls:
        audit = otel_audit.configure(
            directory=tmp_path, export="otlp", endpoint=server.base_url, protocol="http/protobuf", batch_delay_s=0
        )
        audit.log_mcp_call(tool_name="get_online_features")
        delivered = audit.flush(timeout_s=30)
        audit.close()

    assert delivered.complete
    assert calls == steps


def test_the_way_of_a_request_is_taken_in_the_order_of_the_page(tmp_path: Path) -> None:
    steps = steps_of("The way of one request")
    audit = otel_audit.configure(directory=tmp_path, export="none")

    with first_calls(steps) as calls:
        asyncio.run(request(otel_audit.AuditMiddleware(answering, audit=audit)))

    audit.close()
    assert calls == steps


async def answering(scope: Any, receive: Any, send: Callable[[Any], Any]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"three apples"})


async def request(app: Any) -> None:
    scope = {"type": "http", "method": "GET", "path": "/orders/7", "headers": [], "client": ("127.0.0.1", 1)}

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        """The server has it."""

    await app(scope, receive, send)
