"""The signed ledger goes to the collector with the events, so that whoever takes over the host cannot rewrite it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

import otel_audit
from otel_audit.delivery import processor
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.locks import FileLock
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer

pytestmark = pytest.mark.processes

COMMAND = Path(sys.executable).with_name("otel-audit")
WAIT_S = 90.0

SERVICE = """
import os, sys, time
import otel_audit

audit = otel_audit.configure(close_timeout_s=60)

def log():
    audit.log_authn(outcome="success")

def wait():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def records(server: OtlpServer) -> list[LogRecord]:
    requests = [ExportLogsServiceRequest.FromString(each.body) for each in list(server.requests)]
    scopes = [scope for request in requests for logs in request.resource_logs for scope in logs.scope_logs]
    return [record for scope in scopes for record in scope.log_records]


def bodies(server: OtlpServer) -> list[str]:
    return [record.body.string_value for record in records(server)]


def ledger_lines(directory: Path) -> list[str]:
    files = LedgerFiles(directory)
    raw = b"".join(files.segment(number).read_bytes() for number in files.segments())
    return raw.decode().split("\n")[:-1]


def lacking(directory: Path, server: OtlpServer) -> list[str]:
    """The lines of the ledger that were not delivered."""
    there = set(bodies(server))
    return [line for line in ledger_lines(directory) if line not in there]


def environment(directory: Path, server: OtlpServer, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {
        **kept,
        "NO_PROXY": "*",
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_AUDIT_DIR": str(directory),
        "OTEL_AUDIT_BATCH_DELAY_S": "0.05",
        **more,
    }


@contextmanager
def service(program: str, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A service that is ready, or has ended. Killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE + textwrap.dedent(program)],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def run(program: str, variables: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", SERVICE + textwrap.dedent(program)], env=variables, timeout=170, check=True)


@pytest.fixture
def server() -> Iterator[OtlpServer]:
    with OtlpServer() as running:
        yield running


def test_a_process_of_one_event_leaves_its_ledger_with_the_collector_line_by_line(
    tmp_path: Path, server: OtlpServer
) -> None:
    run("log()", environment(tmp_path, server))

    assert lacking(tmp_path, server) == []
    own = [each for each in records(server) if each.body.string_value in set(ledger_lines(tmp_path))]
    assert [each.body.string_value for each in own] == ledger_lines(tmp_path)
    assert {each.event_name for each in own} == {"audit.segment", "audit.ledger", "audit.note"}
    kinds = [json.loads(line)["ledger"]["kind"] for line in ledger_lines(tmp_path) if '{"system":"ledger"' in line]
    assert kinds == ["begin", "open", "end"]


def test_while_nobody_answers_it_waits_and_then_every_line_goes_out(tmp_path: Path, server: OtlpServer) -> None:
    server.will_answer(*[Answer(status=503)] * 3)

    with service("log(); wait()", environment(tmp_path, server)):
        poll(
            lambda: len(ledger_lines(tmp_path)) >= 5 and not lacking(tmp_path, server),
            timeout_s=WAIT_S,
            what="the ledger with the collector",
        )
    assert [answered.path for answered in server.requests][:3] == ["/v1/logs"] * 3


def test_when_the_process_that_exports_it_is_killed_another_one_goes_on(tmp_path: Path, server: OtlpServer) -> None:
    variables = environment(tmp_path, server)
    with ExitStack() as running:
        first = running.enter_context(service("log(); wait()", variables))
        poll(
            lambda: FileLock.is_held(LedgerFiles(tmp_path).ship_lock) and not lacking(tmp_path, server),
            timeout_s=WAIT_S,
            what="the first process to export the ledger",
        )
        second = running.enter_context(service("log(); wait()", variables))
        first.kill()
        first.wait()
        poll(
            lambda: any('"kind":"adopt"' in body for body in bodies(server)) and not lacking(tmp_path, server),
            timeout_s=WAIT_S,
            what="the second process to take over the ledger, and to say there how the first one ended",
        )
        assert second.poll() is None
        second.communicate("\n", timeout=WAIT_S)

    assert second.returncode == 0
    assert lacking(tmp_path, server) == []
    sent = [json.loads(body)["seq"] for body in bodies(server) if body in set(ledger_lines(tmp_path))]
    assert set(sent) == set(range(1, len(ledger_lines(tmp_path)) + 1))


def test_a_fork_leaves_the_ledger_to_its_parent(tmp_path: Path, server: OtlpServer) -> None:
    program = """
        log()
        audit.flush(timeout_s=60)
        child = os.fork()
        log()
        if not child:
            audit.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        wait()
    """
    with service(program, environment(tmp_path, server)) as process:
        assert process.poll() is None
        process.communicate("\n", timeout=WAIT_S)

    assert process.returncode == 0
    assert lacking(tmp_path, server) == []
    assert sum('"kind":"end"' in line for line in ledger_lines(tmp_path)) == 2


def test_what_others_write_a_side_car_delivers(tmp_path: Path, server: OtlpServer) -> None:
    run("log()", environment(tmp_path, server, OTEL_AUDIT_EXPORT="ship"))
    assert server.requests == []
    assert len(lacking(tmp_path, server)) == len(ledger_lines(tmp_path))

    command = [str(COMMAND), "ship", "--once", str(tmp_path)]
    variables = environment(tmp_path, server)
    for _ in range(2):
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100, check=True)
        assert "system lines of" in done.stdout

    own = [body for body in bodies(server) if body in set(ledger_lines(tmp_path))]
    assert own == ledger_lines(tmp_path)
    subprocess.run([*command, "--again"], env=variables, timeout=100, check=True)
    assert bodies(server).count(own[0]) == 2


def test_a_side_car_goes_on_with_the_ledger_of_a_service_that_lives(tmp_path: Path, server: OtlpServer) -> None:
    variables = environment(tmp_path, server)
    with ExitStack() as running:
        running.enter_context(service("log(); wait()", {**variables, "OTEL_AUDIT_EXPORT": "ship"}))
        shipper = subprocess.Popen([COMMAND, "ship", str(tmp_path)], env=variables, stderr=subprocess.DEVNULL)
        running.callback(shipper.wait)
        running.callback(shipper.kill)
        poll(
            lambda: len(ledger_lines(tmp_path)) >= 5 and not lacking(tmp_path, server),
            timeout_s=WAIT_S,
            what="the side-car to deliver the ledger",
        )


@pytest.mark.parametrize("export", ["none", "jsonl", "console"])
def test_nobody_holds_it_who_would_leave_it_on_this_host(tmp_path: Path, server: OtlpServer, export: str) -> None:
    run("log()", environment(tmp_path, server, OTEL_AUDIT_EXPORT=export))

    assert len(ledger_lines(tmp_path)) >= 5
    assert not LedgerFiles(tmp_path).ship_lock.exists()
    assert list(tmp_path.glob("ledger.*.cursor")) == []


@pytest.mark.parametrize("setting", [{"OTEL_AUDIT_LEDGER": "false"}, {"OTEL_AUDIT_DURABILITY": "memory"}])
def test_where_no_ledger_is_kept_none_is_delivered(
    memory_disk: Path, server: OtlpServer, setting: dict[str, str]
) -> None:
    run("log()", environment(memory_disk / "audit", server, **setting))

    assert len(records(server)) >= 2
    assert {each.event_name for each in records(server)} == {"audit.segment", "authn.success"}
    assert ledger_lines(memory_disk / "audit") == []
    assert not LedgerFiles(memory_disk / "audit").ship_lock.exists()


def test_the_events_are_delivered_and_counted_as_without_it(tmp_path: Path, server: OtlpServer) -> None:
    audit = otel_audit.configure(directory=tmp_path, export="otlp", endpoint=server.base_url, protocol="http/protobuf")
    for _ in range(3):
        audit.log_authn(outcome="success")
    audit.close()

    stats = audit.stats()
    assert (stats.emitted, stats.exported, stats.pending) == (3, 3, 0)
    assert lacking(tmp_path, server) == []


def test_a_ledger_that_begins_is_delivered_before_the_next_look_for_streams(
    tmp_path: Path, server: OtlpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_ADOPT_INTERVAL_S", 3600)
    audit = otel_audit.configure(directory=tmp_path, export="otlp", endpoint=server.base_url, protocol="http/protobuf")
    audit.log_authn(outcome="success")

    poll(lambda: '"kind":"open"' in "".join(bodies(server)), timeout_s=WAIT_S, what="the ledger with the collector")

    audit.close()
