"""The commands of the runbooks in docs/operations.md: each runs as it stands, where its alert would send somebody."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.journals import Inbox, a_journal, deliver, record
from tests.cli.test_ship import environment
from tests.compose.stack import ROOT
from tests.servers.otlp_server import OtlpServer

pytestmark = pytest.mark.processes

SECTION = re.compile(r"^#### (\w+)\n(.*?)(?=^###)", re.MULTILINE | re.DOTALL)
RUNBOOKS = dict(SECTION.findall((ROOT / "docs" / "operations.md").read_text(encoding="utf-8")))
COMMANDS = sorted({found for text in RUNBOOKS.values() for found in re.findall(r"`(otel-audit [^`]+)`", text)})
# What each says of a directory with an event that was refused and one that waits, and of the service's settings.
SAID = {
    "status": "quarantined lines 3 to 3: bad record",
    "verify": "CONSISTENT: no contradiction was found in the trail",
    "doctor": "OTEL_EXPORTER_OTLP_ENDPOINT",
    "config": "OTEL_AUDIT_DIR",
    "replay": "1 of 1 quarantined line of 1 stream sent to",
}


def test_the_runbooks_name_commands() -> None:
    assert len(RUNBOOKS) >= 15
    assert {command.split()[1] for command in COMMANDS} == SAID.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_runbook_runs_as_it_stands(command: str, tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    journal = a_journal(directory)
    deliver(record(journal, "good", "poison", "good"), Inbox(refuses=b"poison"))
    record(journal, "waits")
    journal.close()
    arguments = [str(directory) if word == "DIR" else word for word in shlex.split(command)]

    with OtlpServer() as server:
        done = subprocess.run(
            [Path(sys.executable).with_name("otel-audit"), *arguments[1:]],
            env=environment(server, OTEL_AUDIT_DIR=str(directory)),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    assert done.returncode in (0, 1), done.stderr
    assert SAID[arguments[1]] in done.stdout + done.stderr
