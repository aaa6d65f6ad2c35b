"""The units and the commands of docs/operations.md under a systemd that is the first process of its own namespaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import AGENT_CONFIG, COLLECTOR, poll
from tests.servers.booted_systemd import BootedSystemd
from tests.walkthrough import ROOT, sections_of

pytestmark = pytest.mark.processes

BLOCKS = [
    block.text
    for section in sections_of(ROOT / "docs" / "operations.md")
    for block in section.blocks
    if block.value.endswith("tests/test_systemd_booted.py runs it")
]
SHIP, AGENT = "otel-audit-ship@shop", "otel-audit-collector"
ARCHIVE = "/var/lib/otel-audit-collector/archive"
AS_SHOP = "setpriv --reuid=shop --regid=shop --clear-groups env OTEL_SERVICE_NAME=shop OTEL_AUDIT_EXPORT=ship"
DEMO = f"{AS_SHOP} OTEL_AUDIT_DIR=/var/lib/otel-audit/shop /opt/otel-audit/bin/otel-audit demo --seconds 1"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedSystemd]:
    """The units are installed and started as the page says."""
    with BootedSystemd(tmp_path_factory.mktemp("booted") / "machine", COLLECTOR.path()) as booted:
        install, see, health = BLOCKS
        booted.run(install)
        said = booted.run(see)
        assert "emitted " in said
        assert "audit.jsonl" in said
        delivered(booted, 0)
        booted.run(health)
        yield booted


def counted(machine: BootedSystemd) -> tuple[int, int]:
    """The events of the service, and how many of them wait."""
    said = machine.run("/opt/otel-audit/bin/otel-audit status --json /var/lib/otel-audit/shop", check=False)
    totals = json.loads(said[said.index("{") :])
    return totals["emitted"], totals["pending"]


def delivered(machine: BootedSystemd, more_than: int) -> int:
    """Wait until everything is delivered, and that is more than there was."""
    emitted, _ = poll(
        lambda: counted(machine),
        until=lambda now: now[0] > more_than and now[1] == 0,
        timeout_s=90,
        what=f"more than {more_than} events, and none that waits",
    )
    return emitted


def killed(machine: BootedSystemd, unit: str) -> None:
    """SIGKILL, and wait until systemd has started it again."""
    before = machine.show(unit, "MainPID")
    machine.run(f"kill -KILL {before}")
    poll(lambda: machine.show(unit, "MainPID"), until=lambda pid: pid not in {"0", before}, what=f"{unit} again")


@pytest.mark.parametrize("unit", [SHIP, AGENT])
def test_a_unit_that_is_killed_is_started_again_and_no_event_is_lost(machine: BootedSystemd, unit: str) -> None:
    before, _ = counted(machine)
    machine.run(DEMO)

    killed(machine, unit)
    machine.run(DEMO)

    delivered(machine, before)
    poll(lambda: machine.show(unit, "ActiveState"), until=lambda state: state == "active", what="an active unit")


def test_what_waits_while_ship_is_stopped_is_delivered_by_its_next_start(machine: BootedSystemd) -> None:
    machine.run(f"systemctl stop {SHIP}")
    assert (machine.show(SHIP, "Result"), machine.show(SHIP, "ExecMainStatus")) == ("success", "0")
    machine.run(DEMO)
    emitted, pending = counted(machine)
    assert pending > 0

    machine.run(f"systemctl start {SHIP}")

    assert delivered(machine, emitted - 1) == emitted


def test_a_stop_with_events_that_wait_is_no_failure(machine: BootedSystemd) -> None:
    machine.run(f"systemctl stop {AGENT}")
    before, _ = counted(machine)
    machine.run(DEMO)
    poll(lambda: machine.journal(SHIP), until=lambda said: "blocked" in said, what="a try")

    machine.run(f"systemctl stop {SHIP}")

    assert (machine.show(SHIP, "Result"), machine.show(SHIP, "ExecMainStatus")) == ("success", "1")
    machine.run(f"systemctl start {AGENT} {SHIP}")
    delivered(machine, before)


def test_a_wrong_setting_ends_the_unit_for_good(machine: BootedSystemd) -> None:
    machine.run(f"echo OTEL_AUDIT_BATCH_DELAY_S=soon >> /etc/otel-audit/shop.env && systemctl restart {SHIP}")

    poll(lambda: machine.show(SHIP, "ActiveState"), until=lambda state: state == "failed", what="a failed unit")

    assert (machine.show(SHIP, "ExecMainStatus"), machine.show(SHIP, "NRestarts")) == ("2", "0")
    assert "OTEL_AUDIT_BATCH_DELAY_S" in machine.journal(SHIP)
    machine.run(f"sed -i '$d' /etc/otel-audit/shop.env && systemctl restart {SHIP}")


def test_the_agent_takes_a_new_file_and_survives_one_with_a_mistake(machine: BootedSystemd) -> None:
    file = f"/etc/otel-audit-collector/{AGENT_CONFIG.name}"
    pid, before = machine.show(AGENT, "MainPID"), counted(machine)[0]
    machine.run(f"cp {file} /tmp/good && sed -i 's/limit_mib: 512/limit_mib: 511/' {file} && systemctl reload {AGENT}")
    poll(
        lambda: machine.journal(AGENT).count("Everything is ready") >= 2 and "Config updated" in machine.journal(AGENT),
        what="a second start of the pipelines",
    )

    refused = machine.run(f"echo 'mistake: [' >> {file}; systemctl reload {AGENT} || echo refused", check=False)

    assert refused.endswith("refused")
    assert (machine.show(AGENT, "MainPID"), machine.show(AGENT, "ActiveState")) == (pid, "active")
    machine.run(f"cp /tmp/good {file} && systemctl reload {AGENT}")
    machine.run(DEMO)
    delivered(machine, before)


def test_the_agent_gets_a_private_key_that_only_root_can_read(machine: BootedSystemd) -> None:
    drop_in = f"/etc/systemd/system/{AGENT}.service.d"
    certificate = "/etc/otel-audit-collector/tls/server"
    options = "-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    lines = page.partition("  ```ini\n")[2].partition("  ```\n")[0]
    machine.run(
        f"install -d {drop_in} $(dirname {certificate}); umask 077;"
        f"openssl req {options} -keyout {certificate}.key -out {certificate}.crt 2>&1; chmod 0644 {certificate}.crt;"
        f"cat > {drop_in}/tls.conf <<'EOF'\n{lines}EOF\nsystemctl daemon-reload; systemctl restart {AGENT}"
    )
    tls = "OTEL_EXPORTER_OTLP_ENDPOINT=https://127.0.0.1:4318\nOTEL_EXPORTER_OTLP_CERTIFICATE=" + certificate + ".crt"
    env = "/etc/otel-audit/shop.env"
    before, _ = counted(machine)

    machine.run(f"cp {env} /tmp/env && printf '{tls}\n' >> {env} && systemctl restart {SHIP}")
    machine.run(DEMO)

    delivered(machine, before)
    machine.run(f"cp /tmp/env {env} && rm -r {drop_in} && systemctl daemon-reload && systemctl restart {AGENT} {SHIP}")


def test_the_timer_writes_the_numbers_and_nobody_else_can(machine: BootedSystemd) -> None:
    file = "/var/lib/otel-audit-metrics/shop.prom"
    poll(lambda: machine.run(f"cat {file}", check=False), until=lambda said: "audit_" in said, what="the numbers")

    assert machine.show("otel-audit-status@shop", "Result") == "success"
    machine.run("id bank || useradd --system bank")
    tried = machine.run(
        "setpriv --reuid=bank --regid=otel-audit-metrics --clear-groups "
        f"sh -c 'cd {Path(file).parent} && echo mine > bank.prom && mv -f bank.prom shop.prom' 2>&1",
        check=False,
    )
    assert "not permitted" in tried


@pytest.mark.parametrize("unit", [SHIP, AGENT])
def test_a_unit_sees_and_writes_no_more_than_it_needs(machine: BootedSystemd, unit: str) -> None:
    pid = machine.show(unit, "MainPID")
    inside = f"nsenter --target={pid} --mount sh -c"
    facts = machine.run(f"grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/{pid}/status").split()

    assert dict(zip(facts[::2], facts[1::2], strict=True)) == {
        "CapEff:": "0" * 16,
        "CapBnd:": "0" * 16,
        "NoNewPrivs:": "1",
        "Seccomp:": "2",
    }
    assert machine.run(f"ps -o user= -p {pid}") != "root"
    for place in ("/etc", "/usr", "/var/log", "/opt"):
        assert "Read-only" in machine.run(f"{inside} 'touch {place}/x' 2>&1", check=False)
    assert machine.run(f"{inside} 'ls -A /root /home'", check=False) in {"/home:\n\n/root:", "/root:\n\n/home:"}


def test_every_block_of_the_page_that_is_meant_for_here_is_run_here() -> None:
    assert len(BLOCKS) == 3
    assert Path(__file__).name in "".join(
        block.value for section in sections_of(ROOT / "docs" / "operations.md") for block in section.blocks
    )
