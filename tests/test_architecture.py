"""docs/architecture.md says the truth: its files are there, and its steps are taken in its order."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import otel_audit
from otel_audit.cli.command import COMMANDS
from tests.servers.otlp_server import OtlpServer
from tests.walkthrough import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
STEP = re.compile(r"^\d+\. `(?P<file>otel_audit/[\w/]+\.py)`, `(?P<function>[\w.]+)`", re.MULTILINE)
METHOD = re.compile(r"`([A-Z]\w+\.\w+)`")
MOST_FILES = 8
FOLDERS = sorted(path.parent for path in (ROOT / "otel_audit").glob("*/**/__init__.py"))

Step = tuple[str, str]


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def steps_of(title: str) -> list[Step]:
    """The numbered steps below a heading, as file and function, without the name of its class."""
    return [(match["file"], match["function"].rpartition(".")[2]) for match in STEP.finditer(section(title))]


@contextmanager
def first_calls(functions: list[Step]) -> Iterator[dict[Step, list[Step]]]:
    """The functions that are called inside, on any thread, in the order of their first calls.

    Each comes with the functions of the package that had called one another until then, innermost first, by full name.
    """
    seen: dict[Step, list[Step]] = {}
    wanted = set(functions)

    def note(frame: FrameType, kind: str, _: Any) -> None:
        if kind == "call" and (file := file_of(frame)) is not None:
            step = (file, frame.f_code.co_name)
            if step in wanted and step not in seen:
                seen[step] = callers_of(frame)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def file_of(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT / "otel_audit") else None


def callers_of(frame: FrameType) -> list[Step]:
    found: list[Step] = []
    caller = frame.f_back
    while caller is not None:
        if (file := file_of(caller)) is not None:
            found.append((file, caller.f_code.co_qualname))
        caller = caller.f_back
    return found


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`((?:otel_audit|tests)/[\w/]*(?:\.py)?)`", PAGE))

    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_the_overview_of_a_folder_names_each_of_its_modules(folder: Path) -> None:
    overview = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    named = set(re.findall(r"`(?:\w+\.)*(\w+)`|`(\w+)\.\w+`", overview))
    of_its_name = set(COMMANDS) if folder.name == "cli" else set()

    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules - {word for pair in named for word in pair} - of_its_name == set()


def test_the_way_of_an_event_is_taken_in_the_order_of_the_page(tmp_path: Path) -> None:
    steps = steps_of("The path of one event")
    files = {file for file, _ in steps}
    assert len(files) <= MOST_FILES

    with OtlpServer() as server, first_calls(steps) as calls:
        audit = otel_audit.configure(
            directory=tmp_path, export="otlp", endpoint=server.base_url, protocol="http/protobuf", batch_delay_s=0
        )
        audit.log_mcp_call(tool_name="get_online_features")
        delivered = audit.flush(timeout_s=30)
        audit.close()

    assert delivered.complete
    assert list(calls) == steps
    named = set(METHOD.findall(section("The path of one event")))
    assert [hidden for callers in calls.values() for hidden in not_named(callers, files, named)] == []


def not_named(callers: list[Step], files: set[str], named: set[str]) -> list[Step]:
    """The functions between a step and the one before it that are in no file of the page and are not named there."""
    between = list(takewhile(lambda caller: caller[0] not in files, callers))
    passing = {file for file, function in between if function in named}
    if len(between) == len(callers):
        return []  # the first one of its thread: nothing of the page called it
    return [(file, function) for file, function in between if file not in passing]


def test_the_way_of_a_request_is_taken_in_the_order_of_the_page(tmp_path: Path) -> None:
    steps = steps_of("The path of one request")
    audit = otel_audit.configure(directory=tmp_path, export="none")

    with first_calls(steps) as calls:
        asyncio.run(request(otel_audit.AuditMiddleware(answering, audit=audit)))

    audit.close()
    assert list(calls) == steps


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
