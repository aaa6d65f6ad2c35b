"""Trails to look at, and how the tests open and ask them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from otel_audit import AuditPrincipal, AuditResource
from otel_audit.logger import AuditLogger
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.location import is_url, open_store
from otel_audit.stores.store import Store
from otel_audit.verification.pins import Pins
from otel_audit.viewing import answers
from otel_audit.viewing.answers import Asked
from otel_audit.viewing.trail import ViewedTrail
from tests.recording import a_trail
from tests.servers.polling import poll

__all__ = ["ALICE", "all_events", "asking", "logging", "some_events", "tampered", "until", "viewed"]

ALICE = AuditPrincipal(username="alice", id="00u17")
AGENT = AuditPrincipal(username="agent-7", on_behalf_of="bob")
SALARIES = AuditResource(type="table", name="salaries")


@contextmanager
def logging(directory: Path, *, ledger: bool = True) -> Iterator[AuditLogger]:
    """A logger with a journal and a signed ledger, closed at the end."""
    logger = AuditLogger(a_trail(directory, ledger=ledger))
    try:
        yield logger
    finally:
        logger.close()


def some_events(audit: AuditLogger, rounds: int = 1) -> None:
    """Four events a round: a request, a denial, and two calls of a tool."""
    for number in range(rounds):
        audit.log_http_request(
            method="GET", path=f"/orders/{number}", status_code=200, principal=ALICE, duration_ms=number
        )
        audit.log_authz(outcome="deny", principal=ALICE, resource=SALARIES)
        audit.log_mcp_call(tool_name="read", principal=AGENT, outcome="success")
        audit.log_mcp_call(tool_name="write", principal=AGENT, outcome="error")


def tampered(directory: Path, wanted: bytes, change: Callable[[bytes], bytes]) -> int:
    """Change the first line with these bytes in it; return its number."""
    for path in sorted(directory.glob("0*.jsonl")):
        lines = path.read_bytes().split(b"\n")
        for place, line in enumerate(lines):
            if wanted in line:
                lines[place] = change(line)
                path.write_bytes(b"\n".join(lines))
                seq: int = json.loads(line)["seq"]
                return seq
    raise AssertionError(f"no line with {wanted!r}")


def until(is_so: Callable[[], object], what: str) -> None:
    """Return when something is so; no time is promised for it."""
    poll(is_so, what=what)


@contextmanager
def viewed(
    path: Path | str, pins: Pins | None = None, opened: Callable[[], Store] | None = None
) -> Iterator[ViewedTrail]:
    """A trail that has been read and verified."""

    def again() -> Store:
        if isinstance(path, str):
            return open_store(path if is_url(path) else Path(path))
        return DirectoryStore(path) if path.is_dir() and not any(path.rglob("*.parquet")) else open_store(path)

    trail = ViewedTrail(opened or again, pins or Pins())
    with closing(trail):
        trail.start()
        if opened is None:
            until(lambda: trail.reading.is_done or trail.reading.error, "the end of reading")
            assert trail.reading.error == ""
            until(lambda: trail.verified or str(trail.kind) == "event log", "the end of verifying")
        yield trail


def asking(**words: str | int | Sequence[str]) -> Asked:
    """Parameters as a browser sends them."""
    return {
        name: [str(word)] if isinstance(word, str | int) else list(word) for name, word in words.items() if word != ""
    }


def all_events(trail: ViewedTrail, **words: str | Sequence[str]) -> list[dict[str, Any]]:
    """The events of all pages, which are short."""
    found: list[dict[str, Any]] = []
    before = ""
    while True:
        page = answers.events(trail, asking(**words, before=before, limit=3))
        found += page["events"]
        if page["next"] is None:
            return found
        before = page["next"]
