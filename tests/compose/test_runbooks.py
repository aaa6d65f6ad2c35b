"""The commands of the runbooks in docs/operations.md: each runs as it stands, where its alert would send somebody."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import requests

from tests.cli.journals import Inbox, a_journal, deliver, record
from tests.cli.test_ship import environment
from tests.compose.stack import ROOT
from tests.compose.test_dashboard_answers import EVERY_FILE_SYSTEM
from tests.servers import COLLECTOR, StartCollector, poll
from tests.servers.loki import LokiDouble
from tests.servers.otlp_server import OtlpServer

pytestmark = pytest.mark.processes

SECTION = re.compile(r"^#### (\w+)\n(.*?)(?=^###)", re.MULTILINE | re.DOTALL)
RUNBOOKS = dict(SECTION.findall((ROOT / "docs" / "operations.md").read_text(encoding="utf-8")))
QUOTED = sorted({found for text in RUNBOOKS.values() for found in re.findall(r"`([^`]+)`", text)})
COMMANDS = [found for found in QUOTED if found.startswith("otel-audit ")]
OF_THE_COLLECTOR = [found for found in QUOTED if "COLLECTOR:" in found]
PARTS = ["Cause", "See it", "Mend it", "Mended"]
# What each says of a directory with an event that was refused and one that waits, and of the service's settings.
SAID = {
    "status": "quarantined lines 3 to 3: bad record",
    "verify": "CONSISTENT: no contradiction was found in the trail",
    "doctor": "OTEL_EXPORTER_OTLP_ENDPOINT",
    "config": "OTEL_AUDIT_DIR",
    "replay": "1 of 1 quarantined line of 1 stream sent to",
    "ship": "of 1 stream sent to",
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
    with OtlpServer() as server, LokiDouble() as loki:
        places = {"DIR": str(directory), "URL": loki.base_url}
        arguments = [places.get(word, word) for word in shlex.split(command)]
        done = subprocess.run(
            [Path(sys.executable).with_name("otel-audit"), *arguments[1:]],
            env=environment(server, OTEL_AUDIT_DIR=str(directory)),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    assert done.returncode in (0, 1), done.stderr
    said = SAID[arguments[1]] if "--loki" not in arguments else f"not in loki+{loki.base_url} yet"
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("alert", RUNBOOKS)
def test_a_runbook_says_why_how_to_see_it_how_to_mend_it_and_when_it_is_mended(alert: str) -> None:
    assert re.findall(r"^\*\*([A-Z][a-z]+(?: it)?)[.*]", RUNBOOKS[alert], re.MULTILINE) == PARTS


def test_the_commands_on_the_collector_answer(start_collector: StartCollector) -> None:
    """As they stand, but for the ports, while the collector keeps a record for a Loki that is away."""
    bound = "exporters::otlp_http/loki::sending_queue::queue_size: 10000000"
    collector = start_collector(overrides=[bound, EVERY_FILE_SYSTEM])
    record = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "{}"}}]}]}]}
    requests.post(collector.logs_url, json=record, timeout=30).raise_for_status()
    places = {
        "http://COLLECTOR:13133/": collector.health_endpoint,
        "http://COLLECTOR:8888/metrics": collector.metrics_endpoint,
        "http://COLLECTOR:8889/metrics": collector.counts_endpoint,
        "QUEUE": str(collector.data_dir / "queue"),
        "ARCHIVE": str(collector.archive_path.parent),
    }
    scripts = [re.sub("|".join(places), lambda found: places[found[0]], command) for command in OF_THE_COLLECTOR]

    assert len(scripts) == 5
    for script in scripts:
        poll(partial(succeeds, script), timeout_s=60, what=script)


def succeeds(script: str) -> bool:
    return subprocess.run(["sh", "-c", script], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_the_collector_names_a_mistake_in_its_file(tmp_path: Path) -> None:
    [command] = [found for found in QUOTED if found.startswith("otelcol-audit ")]
    _, *arguments = shlex.split(command)
    wrong = tmp_path / "agent.yaml"
    wrong.write_text((ROOT / arguments[-1]).read_text().replace("sending_queue:", "sending_qeue:"))

    def validated(config: Path) -> tuple[int, str]:
        done = subprocess.run(
            [COLLECTOR.path(), *arguments[:-1], config], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stderr

    assert validated(ROOT / arguments[-1]) == (0, "")
    assert "sending_qeue" in validated(wrong)[1]
