"""The units for hosts without containers: accepted by systemd, locked down, and their commands do what they are for."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from otel_audit.journal.census import census
from otel_audit.settings import Settings
from tests.cli.test_ship import environment, journal_of, left_behind
from tests.delivery.audited_server import AuditedServer
from tests.journal.writing import append
from tests.servers import AGENT_CONFIG, poll
from tests.servers.otlp_server import Answer

pytestmark = pytest.mark.processes

UNITS = AGENT_CONFIG.parent / "systemd"
NAMES = ["otel-audit-collector.service", "otel-audit-ship@.service", "otel-audit-status@.service"]
PROGRAM = Path(sys.executable).with_name("otel-audit")
MOST_EXPOSED = 20  # tenths of systemd's own measure, where 100 is a unit without any of these options


def options_of(name: str) -> dict[str, list[str]]:
    """Each option of a unit with its values, whatever its section."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text(encoding="utf-8").splitlines():
        key, sign, value = line.partition("=")
        if sign and not key.startswith(("#", ";")):
            found.setdefault(key, []).append(value)
    return found


def option(name: str, key: str) -> str:
    [value] = options_of(name)[key]
    return value


def command_of(name: str, directory: Path) -> list[str]:
    """What the unit of the service `shop` starts, with `directory` for the root of the file system."""
    program, *arguments = shlex.split(option(name, "ExecStart").replace("%i", "shop"))
    assert program == "/opt/otel-audit/bin/otel-audit"
    return [str(PROGRAM), *(str(directory / each[1:]) if each.startswith("/") else each for each in arguments)]


def status_is_success(name: str, status: int) -> bool:
    return status in {0, *map(int, option(name, "SuccessExitStatus").split())}


def systemd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not on PATH: install systemd")
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units beside each other, with programs that exist on this machine."""
    folder = tmp_path / "units"
    folder.mkdir()
    for path in UNITS.iterdir():
        text = path.read_text(encoding="utf-8")
        for program in ("/opt/otel-audit/bin/otel-audit", "/usr/local/bin/otelcol-audit"):
            text = text.replace(f"={program} ", "=/bin/true ")
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def test_systemd_takes_every_unit_without_a_remark(installed: Path) -> None:
    assert sorted(path.name for path in UNITS.glob("*.service")) == NAMES
    units = [installed / path.name.replace("@.", "@shop.") for path in UNITS.iterdir()]

    checked = systemd("verify", *units)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_a_unit_with_a_mistake_gets_a_remark(installed: Path) -> None:
    unit = installed / "otel-audit-collector.service"
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHomes=yes"))

    assert "ProtectHomes" in systemd("verify", unit).stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_locked_down(installed: Path, name: str) -> None:
    unit = installed / name.replace("@.", "@shop.")

    judged = systemd("security", "--offline=true", f"--threshold={MOST_EXPOSED}", unit)

    assert judged.returncode == 0, judged.stdout[-2000:] + judged.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_says_what_may_be_written_and_how_much_memory_it_may_take(name: str) -> None:
    options = options_of(name)

    assert options["ProtectSystem"] == ["strict"]
    assert "StateDirectory" in options or "ReadWritePaths" in options
    assert options["MemoryMax"]
    assert options["TasksMax"]
    assert "ProcSubset" not in options  # mounts and the id of the boot are read from /proc


def test_what_waits_is_delivered_within_the_time_that_systemd_leaves(tmp_path: Path, server: AuditedServer) -> None:
    directory = tmp_path / "var/lib/otel-audit/shop"
    directory.mkdir(parents=True)
    left_behind(directory, "from a dead process")
    journal = journal_of(directory, "ship")
    append(journal, "from a live one")
    with subprocess.Popen(
        command_of("otel-audit-ship@.service", tmp_path),
        env=environment(server, OTEL_AUDIT_BATCH_DELAY_S="0.05"),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            poll(lambda: census(directory).totals.pending, until=lambda pending: pending == 0, what="all delivered")
            append(journal, "the last one")
            process.terminate()
            _, said = process.communicate(timeout=float(option("otel-audit-ship@.service", "TimeoutStopSec")))
        finally:
            process.kill()
    journal.close()

    assert {"from a dead process", "from a live one", "the last one"} <= set(server.accepted), said
    assert status_is_success("otel-audit-ship@.service", process.returncode)
    defaults = Settings.load({"OTEL_SERVICE_NAME": "shop", "OTEL_AUDIT_DIR": str(tmp_path)})
    assert float(option("otel-audit-ship@.service", "TimeoutStopSec")) > defaults.close_timeout_s


def test_a_stop_while_the_collector_is_away_is_no_failure_of_the_unit(tmp_path: Path, server: AuditedServer) -> None:
    directory = tmp_path / "var/lib/otel-audit/shop"
    directory.mkdir(parents=True)
    left_behind(directory, "a")
    server.judge = lambda names: Answer(503)
    with subprocess.Popen(
        command_of("otel-audit-ship@.service", tmp_path),
        env=environment(server, OTEL_AUDIT_CLOSE_TIMEOUT_S="1"),
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            poll(lambda: server.requests, what="a try")
            process.send_signal(signal.SIGTERM)
            process.wait(120)
        finally:
            process.kill()

    assert process.returncode == 1
    assert status_is_success("otel-audit-ship@.service", 1)
    assert options_of("otel-audit-ship@.service")["Restart"] == ["always"]


def test_a_wrong_setting_is_not_tried_again(tmp_path: Path, server: AuditedServer) -> None:
    (tmp_path / "var/lib/otel-audit/shop").mkdir(parents=True)
    done = subprocess.run(
        command_of("otel-audit-ship@.service", tmp_path),
        env=environment(server, OTEL_EXPORTER_OTLP_TIMEOUT="soon"),
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert str(done.returncode) in option("otel-audit-ship@.service", "RestartPreventExitStatus").split()


def test_the_numbers_of_a_host_are_written_each_minute(tmp_path: Path) -> None:
    directory = tmp_path / "var/lib/otel-audit/shop"
    directory.mkdir(parents=True)
    (tmp_path / "var/lib/otel-audit-metrics").mkdir()
    left_behind(directory, "waits")

    done = subprocess.run(
        command_of("otel-audit-status@.service", tmp_path),
        env={name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        timeout=60,
        check=False,
    )

    assert done.returncode == 1  # nobody delivers it
    assert status_is_success("otel-audit-status@.service", 1)
    assert "audit_queue_depth{" in (tmp_path / "var/lib/otel-audit-metrics/shop.prom").read_text()
    assert option("otel-audit-status@.timer", "OnUnitActiveSec") == "60"
    assert float(option("otel-audit-status@.service", "TimeoutStartSec")) < 60


def test_the_collector_is_started_as_the_tests_start_it() -> None:
    program, *arguments = shlex.split(option("otel-audit-collector.service", "ExecStart"))

    assert program.endswith("/otelcol-audit")
    assert arguments == [f"--config=/etc/otel-audit-collector/{AGENT_CONFIG.name}"]
    assert "/var/lib/otel-audit-collector/queue" in AGENT_CONFIG.read_text(encoding="utf-8")
    assert option("otel-audit-collector.service", "StateDirectory") == "otel-audit-collector"
