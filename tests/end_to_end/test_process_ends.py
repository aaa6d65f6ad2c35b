"""However a process ends, what it logged is delivered: by itself, or by whoever comes next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from otel_audit import AuditEvent
from otel_audit.journal.census import census
from otel_audit.journal.counts import Counts
from tests.chain_check import application_events
from tests.delivery.audited_server import AuditedServer
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer

pytestmark = pytest.mark.processes

START = """
    import atexit, os, signal, sys, threading, time
    import otel_audit

    audit = otel_audit.configure()

    def log(name):
        receipt = audit.log(otel_audit.AuditEvent(event_type="test", outcome="success", event_id=name))
        assert receipt is not None and receipt.event_id == name
        return receipt

    def log_many(count):
        for number in range(count):
            log(f"event-{number}")
        print("logged", flush=True)
"""


def start(directory: Path, server: OtlpServer, script: str, **more: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(START) + textwrap.dedent(script)],
        env={
            **kept,
            "NO_PROXY": "*",
            "OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_AUDIT_DIR": str(directory),
            **more,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], *, timeout_s: float = 60.0) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output, errors


def wait_until_logged(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"


def events_in(server: AuditedServer) -> list[str]:
    return [name for name in server.accepted if name != "header"]


def names(count: int) -> list[str]:
    return [f"event-{number}" for number in range(count)]


def deliver_the_rest(directory: Path, server: AuditedServer) -> None:
    """Another process of the same service, which only starts and ends."""
    code, _, errors = ended(
        start(
            directory,
            server,
            """
            from pathlib import Path
            from otel_audit.journal.census import census

            audit.start()
            deadline = time.monotonic() + 20
            while census(Path(os.environ["OTEL_AUDIT_DIR"])).totals.pending:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            """,
        )
    )
    assert code == 0, errors


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("raise RuntimeError('a bug')", 1),
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); os.kill(os.getpid(), signal.SIGTERM)", 5),
        ("audit.close()", 0),
        ("audit.close(); audit.close()", 0),
    ],
    ids=["return", "exception", "exit", "Ctrl-C", "SIGTERM with a handler", "closed", "closed twice"],
)
def test_an_end_that_runs_exit_handlers_delivers_everything(
    end: str, code: int, tmp_path: Path, server: AuditedServer
) -> None:
    # A delay that is never over: what arrives was sent by the end itself.
    process = start(tmp_path, server, f"log_many(30)\n{end}", OTEL_AUDIT_BATCH_DELAY_S="600")

    assert ended(process)[0] == code

    assert events_in(server) == names(30)
    assert census(tmp_path).totals == Counts(exported=30, system=1)
    assert list(tmp_path.glob("*-*.lock")) == []


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_an_end_that_runs_nothing_leaves_everything_to_the_next_process(
    end: str, tmp_path: Path, server: AuditedServer
) -> None:
    ended(start(tmp_path, server, f"log_many(30)\n{end}", OTEL_AUDIT_BATCH_DELAY_S="600"))
    assert [event["event_id"] for event in application_events(tmp_path)] == names(30)

    deliver_the_rest(tmp_path, server)

    assert set(events_in(server)) == set(names(30))
    assert census(tmp_path).totals == Counts(exported=30, system=1)


def test_an_end_while_the_endpoint_hangs_is_bounded_and_leaves_everything(
    tmp_path: Path, server: AuditedServer
) -> None:
    server.judge = lambda _: Answer(delay_s=120)
    process = start(tmp_path, server, "log_many(30)", OTEL_AUDIT_CLOSE_TIMEOUT_S="1", OTEL_EXPORTER_OTLP_TIMEOUT="60")
    wait_until_logged(process)
    began = time.monotonic()

    code, _, errors = ended(process)

    assert code == 0, errors
    assert time.monotonic() - began < 15  # a second of its own, and the time that an interpreter needs to go
    assert census(tmp_path).totals.pending == 30
    server.judge = lambda _: None
    server.stopping.set()  # the answer that hangs
    deliver_the_rest(tmp_path, server)
    assert census(tmp_path).totals == Counts(exported=30, system=1)


def test_a_termination_handler_that_closes_inside_of_a_call_does_not_hang(
    tmp_path: Path, server: AuditedServer
) -> None:
    script = """
        count = 0

        def stop(number, frame):
            audit.close(timeout_s=5)
            print(count, flush=True)
            sys.exit(0)

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        while True:
            log(f"event-{count}")
            count += 1
    """
    code, output, errors = ended(start(tmp_path, server, script))

    assert code == 0, errors
    acknowledged = set(names(int(output)))
    on_disk = {event["event_id"] for event in application_events(tmp_path)}
    assert acknowledged <= on_disk
    deliver_the_rest(tmp_path, server)
    assert acknowledged <= set(events_in(server))


def test_what_an_exit_handler_logs_after_the_close_goes_out_with_the_next_process(
    tmp_path: Path, server: AuditedServer
) -> None:
    # Handlers run in reverse order: this one comes after the logger's own, and after its threads.
    script = "audit.close()\nlog('late')\nos._exit(0)"
    assert ended(start(tmp_path, server, f"log_many(3)\n{script}"))[0] == 0
    assert events_in(server) == names(3)

    deliver_the_rest(tmp_path, server)

    assert events_in(server) == [*names(3), "late"]


@pytest.mark.parametrize(
    "child",
    [
        "pid = os.fork()\nif pid == 0:\n    log('child')\n    os._exit(0)\nos.waitpid(pid, 0)",
        "pid = os.fork()\nif pid == 0:\n    log('child')\n    sys.exit(0)\nos.waitpid(pid, 0)",
        "import multiprocessing\n"
        "child = multiprocessing.get_context('fork').Process(target=log, args=('child',))\n"
        "child.start()\nchild.join()\nassert child.exitcode == 0",
    ],
    ids=["fork and _exit", "fork and exit", "multiprocessing"],
)
def test_what_a_forked_child_logged_is_delivered_whatever_becomes_of_it(
    child: str, tmp_path: Path, server: AuditedServer
) -> None:
    code, _, errors = ended(start(tmp_path, server, f"log('before')\n{child}\nlog('after')"))
    assert code == 0, errors

    deliver_the_rest(tmp_path, server)

    assert sorted(events_in(server)) == ["after", "before", "child"]
    assert census(tmp_path).totals == Counts(exported=3, system=2)


def test_a_fork_with_delivery_under_way_disturbs_neither_side(tmp_path: Path, server: AuditedServer) -> None:
    script = """
        pids = []
        for number in range(120):
            log(f"event-{number}")
            if number % 12 == 0:
                pid = os.fork()
                if pid == 0:
                    log(f"child-{number}")
                    report = audit.flush(timeout_s=30)
                    os._exit(0 if report.complete else 1)
                pids.append(pid)
        assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in pids)
    """
    code, _, errors = ended(start(tmp_path, server, script, OTEL_AUDIT_BATCH_DELAY_S="0"))

    assert code == 0, errors
    children = [f"child-{number}" for number in range(0, 120, 12)]
    assert sorted(events_in(server)) == sorted([*names(120), *children])


@pytest.mark.parametrize("export", ["otlp", "console", "jsonl"])
def test_delivery_imports_nothing_so_that_no_forked_child_waits_for_the_lock_of_an_import(
    export: str, tmp_path: Path, server: AuditedServer
) -> None:
    script = """
        audit.start()
        before = set(sys.modules)
        log_many(3)
        assert audit.flush(timeout_s=20).complete
        print(sorted(set(sys.modules) - before))
    """
    code, output, errors = ended(start(tmp_path, server, script, OTEL_AUDIT_EXPORT=export))

    assert code == 0, errors
    assert output == "logged\n[]\n"


def test_a_parent_delivers_the_stream_of_a_child_that_was_killed(tmp_path: Path, server: AuditedServer) -> None:
    script = """
        pid = os.fork()
        if pid == 0:
            log("child")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        audit.start()
        print("logged", flush=True)
        time.sleep(120)
    """
    process = start(tmp_path, server, script, OTEL_AUDIT_BATCH_DELAY_S="0.1")
    wait_until_logged(process)

    poll(lambda: events_in(server), until=lambda seen: seen == ["child"], what="the child's event")

    process.kill()
    process.communicate()


def test_the_jsonl_copy_gives_back_the_events_byte_for_byte(tmp_path: Path, server: AuditedServer) -> None:
    copy = tmp_path / "copy.jsonl"
    script = """
        who = otel_audit.AuditPrincipal(username="zoë", roles=["a", "b"])
        audit.log_http_request(method="GET", path="/items", principal=who, status_code=403)
        odd = "line\\u2028separator \\x00 \\U0001f600"
        audit.log_mcp_call(tool_name="get", duration_ms=1.5, jsonrpc_id="7", detail=odd)
        audit.log_authn(outcome="failure", detail='quote " backslash \\\\')
    """
    code, _, errors = ended(
        start(tmp_path / "audit", server, script, OTEL_AUDIT_EXPORT="jsonl", OTEL_AUDIT_JSONL_PATH=str(copy))
    )
    assert code == 0, errors

    lines = copy.read_bytes().split(b"\n")[:-1]
    assert [AuditEvent.model_validate_json(line).event_type for line in lines] == [
        "http.request",
        "mcp.tools.call",
        "authn.failure",
    ]
    assert [AuditEvent.model_validate_json(line).to_jsonl().encode() for line in lines] == lines
    assert server.requests == []
