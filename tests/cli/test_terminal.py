"""Nothing that an event, a collector or a path says reaches a terminal as something that it would obey."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.cli import main
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.notices import Notices, escaped_json, shown_json
from tests.cli.journals import Inbox, a_journal, deliver

OBEYED = [
    *map(chr, [*range(32), *range(127, 160)]),
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e",
    "\u2066",
    "\u2069",
]
HOSTILE = "".join(OBEYED)


def assert_harmless(shown: str) -> None:
    assert {*shown} & {*OBEYED} <= {"\n"}, repr(shown)


@given(st.text())
def test_json_that_is_escaped_is_the_same_value_and_is_obeyed_by_no_terminal(text: str) -> None:
    for plain in (json.dumps({text: [text]}), json.dumps({text: [text]}, ensure_ascii=False)):
        shown = escaped_json(plain)

        assert json.loads(shown) == json.loads(plain)
        assert_harmless(shown)
    assert json.loads(shown_json([text])) == [text]


@pytest.fixture
def hostile(tmp_path: Path) -> AuditEvent:
    """An event that is hostile in every field, in the journal of a service that is so too."""
    event = AuditEvent(
        event_type=f"http.request{HOSTILE}",
        outcome=HOSTILE,
        detail=HOSTILE,
        request_id=HOSTILE,
        principal=AuditPrincipal(username=HOSTILE, roles=[HOSTILE]),
        source=AuditSource(ip=HOSTILE, transport=HOSTILE),
        action=AuditAction(mcp_tool=HOSTILE, path=HOSTILE),
        resource=AuditResource(type=HOSTILE, name=HOSTILE, actions=[HOSTILE]),
    )
    journal = a_journal(tmp_path, service=HOSTILE, export=[f"otlp{HOSTILE}", "otlp"])
    now_ns = time.time_ns()
    journal.append("", event.to_jsonl().encode(), now_ns, now_ns)
    assert journal.stream is not None
    deliver(journal.stream.files, Inbox(away=f"refused {HOSTILE}"))
    journal.close()
    return event


@pytest.mark.parametrize("command", [["tail"], ["tail", "--json"], ["status"], ["status", "--json"]], ids=" ".join)
def test_no_command_lets_through_what_an_event_says(tmp_path: Path, hostile: AuditEvent, command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, str(tmp_path)])

    assert_harmless(result.output)
    if command == ["tail", "--json"]:
        assert json.loads(result.stdout.splitlines()[-1])["detail"] == HOSTILE


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_what_a_policy_makes_of_a_hostile_event_is_shown_harmless(
    tmp_path: Path, hostile: AuditEvent, form: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / HOSTILE.replace("\0", "")))

    explained = CliRunner().invoke(main, ["config", *form, "--explain", "-"], input=hostile.to_jsonl())
    shown = CliRunner().invoke(main, ["config", *form])

    assert (explained.exit_code, shown.exit_code) == (0, 0)
    assert_harmless(explained.output)
    assert_harmless(shown.output)


def test_a_notice_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    Notices().say("blocked", f"otlp: blocked: {HOSTILE}")

    said = capsys.readouterr().err
    assert_harmless(said)
    assert said.count("\n") == 1


@pytest.mark.processes
def test_metrics_change_no_terminal_and_are_as_they_are_in_a_pipe(tmp_path: Path, hostile: AuditEvent) -> None:
    command = [sys.executable, "-c", "from otel_audit.cli import main; main()", "status", "--prometheus", str(tmp_path)]
    theirs, ours = pty.openpty()
    with subprocess.Popen(command, stdout=ours):
        os.close(ours)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while block := os.read(theirs, 1 << 16):
                shown += block
    os.close(theirs)
    piped = subprocess.run(command, capture_output=True, check=False, timeout=60).stdout.decode()

    assert_harmless(shown.decode().replace("\r\n", "\n"))
    assert b"audit_records_emitted" in shown
    assert "\x1b" in piped
