"""When threads of ours begin: never in a process that only loads an application and forks, as servers' masters do.

uWSGI forks in C code, which runs none of Python's hooks. What another thread held at that moment, the interpreter or a
lock, would be held for ever in the worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

import otel_audit
from otel_audit.logger import AuditLogger
from tests.chain_check import application_events
from tests.integrations.serving import an_app, served
from tests.servers import poll
from tests.servers.otlp_grpc_server import OtlpGrpcServer
from tests.servers.otlp_server import OtlpServer

pytestmark = pytest.mark.processes

LOADING = """
    import json, os, sys, time

    import otel_audit
    from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter
    from otel_audit.integrations.otel_logs import AuditLogExporter, AuditLogRecordProcessor

    def over(protocol, **settings):
        os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = protocol
        return otel_audit.configure(**settings)

    makers = {
        "http": lambda: over("http/protobuf"),
        "grpc": lambda: over("grpc"),
        "fsync": lambda: over("grpc", durability="fsync"),
        "memory": lambda: over("http/protobuf", durability="memory"),
        "files": lambda: otel_audit.configure(export="jsonl,console"),
        "the journal": lambda: otel_audit.configure(export="none"),
        "ship": lambda: otel_audit.configure(export="ship"),
        "exporters of the SDK": lambda: otel_audit.configure(exporters=[ConsoleLogRecordExporter]),
        "processor of the SDK": AuditLogRecordProcessor,
        "exporter of the SDK": AuditLogExporter,
    }

    # The SDK asks resource detectors in threads, and joins them; the kernel sees them for a moment longer.
    started = []
    sys.addaudithook(
        lambda event, args: started.append(args[0].__self__.name) if event.startswith("_thread.start_") else None
    )

    made, held = [], {}
    for name, make in makers.items():
        before = len(os.listdir("/proc/self/fd"))
        made.append(make())
        held[name] = len(os.listdir("/proc/self/fd")) - before
    deadline = time.monotonic() + 20
    while len(tasks := os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    ours = [name for name in started if not name.startswith("ThreadPoolExecutor")]
    print(json.dumps({"held": held, "started": ours, "tasks": len(tasks)}))
    sys.stdout.flush()
    os._exit(0)
"""


def run(program: str, directory: Path, environ: Mapping[str, str], *arguments: str) -> str:
    """What a process of its own says, with the journal in the directory."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GRPC_"))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env={**plain, "OTEL_AUDIT_DIR": str(directory), "OTEL_SERVICE_NAME": "shop", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_configuring_starts_no_thread_and_keeps_nothing_open(tmp_path: Path) -> None:
    said = run(LOADING, tmp_path / "audit", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})

    found = json.loads(said)
    assert len(found["held"]) == 10
    assert found == {"held": dict.fromkeys(found["held"], 0), "started": [], "tasks": 1}


def ours() -> list[str]:
    """The threads of this process that are ours."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("otel-audit"))


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A journal with an event that a dead process has left."""
    directory = tmp_path / "audit"
    dying = "import os, otel_audit; otel_audit.configure(export='ship').log_authn(outcome='success'); os._exit(0)"
    run(dying, directory, {})
    assert len(application_events(directory)) == 1
    return directory


def details(requests: Sequence[bytes]) -> list[str]:
    """The `detail` of each event of the application that was delivered."""
    return [
        event.get("detail", "")
        for request in requests
        for resource in ExportLogsServiceRequest.FromString(request).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
        if "system" not in (event := json.loads(record.body.string_value))
    ]


def delivered(server: OtlpServer) -> list[str]:
    return details([request.body for request in server.requests])


def log(audit: AuditLogger) -> None:
    audit.log_authn(outcome="success")


def serve(audit: AuditLogger) -> None:
    with served(otel_audit.AuditMiddleware(an_app(), audit=audit)):
        poll(ours, what="threads of ours")


BEGINNINGS: dict[str, Callable[[AuditLogger], object]] = {
    "an event": log,
    "flush": lambda audit: audit.flush(timeout_s=0),
    "the lifespan of a server": serve,
    "start": AuditLogger.start,
    "close": AuditLogger.close,
}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_what_a_dead_process_left_is_delivered_once_this_one_begins(
    beginning: str, otlp_server: OtlpServer, left: Path
) -> None:
    before = set(threading.enumerate())  # those of loggers that no test has closed among them
    audit = otel_audit.configure(directory=left, batch_delay_s=0.02)
    assert audit.stats().emitted == 0
    assert not [
        each.name for each in threading.enumerate() if each not in before and each.name.startswith("otel-audit")
    ]

    BEGINNINGS[beginning](audit)

    poll(lambda: delivered(otlp_server), what="what was left")
    audit.close()


def test_a_child_that_logs_nothing_leaves_everything_to_others_at_its_end(otlp_server: OtlpServer, left: Path) -> None:
    forking = """
        import os, otel_audit

        audit = otel_audit.configure()
        if os.fork() == 0:
            audit.close()
            print(os.listdir("/proc/self/task") == [str(os.getpid())], flush=True)
            os._exit(0)
        assert os.wait()[1] == 0
        os._exit(0)
    """
    said = run(
        forking,
        left,
        {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp_server.base_url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    )

    assert said == "True\n"
    assert delivered(otlp_server) == []


# What is asked first in the child: a server's start-up, a flush, the numbers, an event, or the end.
FORKED_IN_C = """
    import ctypes, os, sys, time
    import otel_audit

    audit = otel_audit.configure()
    has_begun, first = sys.argv[1] == "begun", sys.argv[2]
    if has_begun:
        audit.log_authn(outcome="success", detail="parent")
        assert audit.flush(timeout_s=20).complete
        time.sleep(0.3)  # until its threads are idle: no hook of C's fork waits for the locks that they hold
    if ctypes.PyDLL(None).fork() == 0:
        match first:
            case "start":
                audit.start()
            case "flush":
                assert audit.flush(timeout_s=20).complete
            case "stats":
                assert audit.stats() == otel_audit.Stats(0, 0, 0, 0), audit.stats()
        audit.log_authn(outcome="success", detail="child")
        assert audit.flush(timeout_s=20).complete
        assert audit.stats().exported == 1, audit.stats()
        audit.close()
        os._exit(0)
    assert os.wait()[1] == 0
    if has_begun:
        audit.log_authn(outcome="success", detail="parent again")
        assert audit.flush(timeout_s=20).complete
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("parent", "first"),
    [("loaded", "log"), ("begun", "log"), ("begun", "start"), ("begun", "flush"), ("begun", "stats")],
)
def test_a_child_that_c_code_forks_delivers_on_its_own(parent: str, first: str, tmp_path: Path) -> None:
    with OtlpServer() as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        run(FORKED_IN_C, tmp_path, environ, parent, first)

        assert delivered(server) == (["parent", "child", "parent again"] if parent == "begun" else ["child"])
        assert len({request.connection for request in server.requests}) == (2 if parent == "begun" else 1)


def test_delivery_over_grpc_imports_nothing_so_that_no_forked_child_waits_for_the_lock_of_an_import(
    tmp_path: Path,
) -> None:
    program = """
        import sys, otel_audit

        audit = otel_audit.configure()
        audit.start()
        before = set(sys.modules)
        audit.log_authn(outcome="success")
        assert audit.flush(timeout_s=20).complete
        print(sorted(set(sys.modules) - before))
    """
    with OtlpGrpcServer() as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        assert run(program, tmp_path, environ) == "[]\n"


@pytest.mark.parametrize("parent", ["loaded", "begun"])
def test_a_child_that_c_code_forks_delivers_over_grpc(parent: str, tmp_path: Path) -> None:
    with OtlpGrpcServer() as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        run(FORKED_IN_C, tmp_path, environ, parent, "log")

        requests = [received.message for received in server.requests]
        assert details(requests) == (["parent", "child", "parent again"] if parent == "begun" else ["child"])
