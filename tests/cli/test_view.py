"""`otel-audit view` as a command: how it begins, whom it gives its URL to, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from otel_audit.access import login_uid
from otel_audit.cli import main
from tests.stores.archives import journal_lines
from tests.viewing.trails import logging, some_events, until

URL = re.compile(r"http://127\.0\.0\.1:\d+/[\w-]{43}/")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    with logging(tmp_path / "journal") as audit:
        some_events(audit)
    return tmp_path / "journal"


@contextmanager
def viewing(*arguments: str | Path, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, and the URL that it prints. SIGTERM ends it."""
    kept = {name: word for name, word in os.environ.items() if not name.startswith(("OTEL_", "DISPLAY", "WAYLAND"))}
    process = subprocess.Popen(
        [Path(sys.executable).with_name("otel-audit"), "view", *map(str, arguments)],
        env={**kept, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def asked(url: str, path: str) -> Any:
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=60)) as connection:
        connection.request("GET", f"{parts.path}{path}")
        return json.loads(connection.getresponse().read())


@pytest.mark.processes
def test_the_url_opens_the_trail_of_the_settings_until_a_signal_ends_it(journal: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with viewing(OTEL_AUDIT_DIR=str(journal), TMPDIR=str(scratch)) as (process, url):
        assert URL.fullmatch(url), url
        assert asked(url, "api/state")["source"] == str(journal)

    assert process.returncode == 0
    assert list(scratch.iterdir()) == []


@pytest.mark.processes
def test_a_browser_is_given_the_url_in_a_file_that_nobody_else_can_read(journal: Path, tmp_path: Path) -> None:
    given, browser = tmp_path / "given", tmp_path / "browser"
    os.mkfifo(given)
    browser.write_text(f'#!/bin/sh\nfile="${{1#file://}}"\n(echo "$1"; stat -c %a "$file"; cat "$file") > {given}\n')
    browser.chmod(0o755)
    with viewing(journal, DISPLAY=":7", BROWSER=f"{browser} %s") as (process, url):
        argument, mode, page = given.read_text().split("\n", 2)
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()

    token = urlsplit(url).path.strip("/")
    assert token not in argument + arguments
    assert mode == "600"
    assert f"url={url}" in page
    assert not Path(urlsplit(argument).path).exists()


@pytest.mark.processes
def test_what_is_looked_at_is_recorded_once_and_not_at_each_look_of_the_page(journal: Path, tmp_path: Path) -> None:
    access = tmp_path / "access"
    with viewing(journal, OTEL_AUDIT_ACCESS_LOG=str(access)) as (_, url):
        until(lambda: asked(url, "api/state")["reading"]["is_done"], "the end of reading")
        rows = asked(url, "api/events?actor=alice&since=1d")["events"]
        for _ in range(3):
            asked(url, "api/events?actor=alice&since=1d")
            asked(url, "api/timeline?actor=alice&since=1d")
            asked(url, "api/state?follow=1")
            asked(url, "api/values?name=actor&text=al")
            asked(url, "api/timeline?actor=agent-7")
        asked(url, f"api/proof?stream={rows[0]['stream_id']}&seq={rows[0]['seq']}")

    looks = looks_in(access)
    begun = [line for line in looks if not line.get("parent_id")]
    assert {line["resource"]["name"] for line in looks} == {str(journal)}
    assert {line["attributes"]["access.command"] for line in looks} == {"view"}
    assert all("access.login_uid" in line["attributes"] for line in looks) is (login_uid() is not None)
    assert [filters_of(line) for line in begun] == [
        [],
        ["actor=alice"],
        ["suggest=actor:al"],
        ["actor=agent-7"],
        [f"proof={rows[0]['stream_id']}:{rows[0]['seq']}"],
    ]
    assert [line["attributes"]["access.returned"] for line in looks if line.get("parent_id")] == [2, 1, 2, 1, 6]


def looks_in(access: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for each in journal_lines(access).values() for line in each]
    return [line for line in lines if line.get("event_type") == "audit.access"]


def filters_of(line: Mapping[str, Any]) -> list[str]:
    return list(line["attributes"].get("access.filters", []))


@pytest.mark.processes
def test_nothing_is_served_where_looks_cannot_be_recorded(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = CliRunner().invoke(main, ["view", str(journal)], env={"OTEL_AUDIT_ACCESS_LOG": str(tmp_path / "file")})

    assert result.exit_code == 2
    assert "who looks" in result.output
    assert "http://" not in result.output


def test_a_port_that_is_taken_is_said(journal: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["view", str(journal), "--no-browser", "--port", str(port)])

    assert result.exit_code == 2
    assert f"expected a free port on this machine, got {port}: " in result.output


@pytest.mark.parametrize("source", ["missing", ""])
def test_a_trail_that_is_not_there_is_said(tmp_path: Path, source: str) -> None:
    result = CliRunner().invoke(main, ["view", str(tmp_path / source) if source else ""])

    assert result.exit_code == 2
    assert "expected" in result.output
