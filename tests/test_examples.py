"""The examples, as their readers start them, and what they leave in the journal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chain_check import application_events
from tests.servers import free_port, poll

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).parents[1] / "examples"
ENDING_S = 60


def environment(directory: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
    return {**kept, "OTEL_AUDIT_DIR": str(directory), "OTEL_SERVICE_NAME": "example", "PYTHONDONTWRITEBYTECODE": "1"}


def run_script(directory: Path, days: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "plain_script.py"), str(days)]
    return subprocess.run(
        command, env=environment(directory), capture_output=True, text=True, timeout=ENDING_S, check=False
    )


@contextmanager
def fastapi_app(directory: Path) -> Iterator[str]:
    """Its address, until it has ended."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=EXAMPLES, env=environment(directory))
    url = f"http://127.0.0.1:{port}"
    try:
        poll(lambda: is_healthy(url) or process.poll() is not None, timeout_s=ENDING_S, what="the example to start")
        yield url
        process.send_signal(signal.SIGTERM)
        process.wait(ENDING_S)
    finally:
        process.kill()
        process.wait()


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


def told(event: dict[str, Any]) -> tuple[str, str, str]:
    return event["event_type"], event["outcome"], event["principal"]["username"]


def test_the_script_records_each_deletion_before_and_after_and_the_job(tmp_path: Path) -> None:
    done = run_script(tmp_path, 365)

    assert (done.returncode, done.stderr) == (0, "")
    events = application_events(tmp_path)
    deletions = [(event["resource"]["name"], event["outcome"]) for event in events if "delete" in event["event_type"]]
    assert deletions == [("bob", "unknown"), ("bob", "success"), ("eve", "unknown"), ("eve", "success")]
    assert told(events[-1]) == ("job.cleanup", "success", "nightly-cleanup")


def test_the_script_records_a_job_that_failed(tmp_path: Path) -> None:
    done = run_script(tmp_path, 0)

    assert done.returncode == 1
    (event,) = application_events(tmp_path)
    assert (event["outcome"], event["error_type"]) == ("error", "ValueError")


@pytest.mark.parametrize(
    ("token", "status", "expected"),
    [
        (
            "secret-of-ann",
            200,
            {
                ("authn.success", "success", "ann"),
                ("authz.decision", "allow", "ann"),
                ("http.request", "success", "ann"),
            },
        ),
        (
            "secret-of-bob",
            403,
            {("authn.success", "success", "bob"), ("authz.decision", "deny", "bob"), ("http.request", "denied", "bob")},
        ),
        ("guessed", 401, {("authn.failure", "failure", ""), ("http.request", "denied", "")}),
    ],
)
def test_the_fastapi_service_records_who_asked_and_what_was_decided(
    token: str, status: int, expected: set[tuple[str, str, str]], tmp_path: Path
) -> None:
    with fastapi_app(tmp_path) as url:
        answer = httpx.delete(url + "/orders/7", headers={"Authorization": f"Bearer {token}"})

    assert answer.status_code == status
    events = application_events(tmp_path)
    assert len(events) == len(expected)
    assert {told(event) for event in events} == expected
    assert token not in str(events)
