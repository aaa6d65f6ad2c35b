"""Meter providers that are set late, that fail, or that there are none of, and a fork while one is at work."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import Histogram, Meter, MeterProvider, NoOpMeter

from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.metrics.reader import ROOT, emit


class Broken(MeterProvider):
    """A meter provider that gives instruments which cannot be used, or gives none."""

    def __init__(self, *, gives: bool) -> None:
        self._gives = gives

    def get_meter(self, name: str, version: str | None = None, *more: Any, **others: Any) -> Meter:
        if not self._gives:
            raise RuntimeError("no meter")
        return BrokenMeter(name)


class BrokenHistogram(Histogram):
    def __init__(self) -> None:
        self.asked = 0

    def record(self, *arguments: Any, **others: Any) -> None:
        self.asked += 1
        raise RuntimeError("no measurement")


class BrokenMeter(NoOpMeter):
    def create_histogram(self, *arguments: Any, **others: Any) -> Histogram:
        return BrokenHistogram()


@pytest.mark.parametrize("gives", [True, False])
def test_a_meter_provider_that_fails_stops_no_event(gives: bool, tmp_path: Path, server: AuditedServer) -> None:
    trail = Trail(
        Settings.load({}, {"directory": str(tmp_path), "export": "none"}),
        exporters=[exporter_to(server)],
        metrics=AuditMetrics(Broken(gives=gives)),
    )
    emit(trail, "one")

    assert trail.flush(timeout_s=20).complete
    trail.close()


def run(script: str, *arguments: object) -> str:
    """What a script prints, in a process whose global meter provider is its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        env={"OTEL_SERVICE_NAME": "shop", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


GLOBAL = """
import os, sys, threading
import otel_audit
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

reader = InMemoryMetricReader()

def log(audit, count):
    for _ in range(count):
        audit.log_authn(outcome="success")

def emitted():
    found = [
        (scope.scope.version == otel_audit.__version__, metric.data.data_points[0].value)
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "audit.records.emitted"
    ]
    return found

def trail(name):
    return otel_audit.configure(directory=sys.argv[1] + name, export="none")
"""


@pytest.mark.processes
def test_the_global_meter_provider_may_be_set_before_or_after_a_trail_is_made(tmp_path: Path) -> None:
    script = """
first = trail("/first")
log(first, 2)
metrics.set_meter_provider(MeterProvider([reader]))
print(emitted())
second = trail("/second")
log(second, 3)
print(emitted())
"""
    assert run(GLOBAL + script, tmp_path) == "[(True, 2)]\n[(True, 5)]\n"


@pytest.mark.processes
def test_a_forked_child_counts_its_own_events_only(tmp_path: Path) -> None:
    script = """
metrics.set_meter_provider(MeterProvider([reader]))
closed = trail("/closed")
log(closed, 5)
closed.close()
del closed
audit = trail("/open")
log(audit, 2)
print(emitted(), flush=True)
if os.fork() == 0:
    print(emitted(), flush=True)
    log(audit, 1)
    print(emitted(), flush=True)
    os._exit(0)
os.wait()
print(emitted())
"""
    printed = run(GLOBAL + script, tmp_path)

    assert printed == "[(True, 7)]\n[(True, 0)]\n[(True, 1)]\n[(True, 7)]\n"


@pytest.mark.processes
def test_without_a_meter_provider_nothing_of_the_metrics_sdk_is_loaded(tmp_path: Path) -> None:
    script = """
    import sys
    import otel_audit
    with otel_audit.configure(directory=sys.argv[1], export="jsonl") as audit:
        audit.log_authn(outcome="success")
        assert audit.flush().complete
    print([name for name in sys.modules if name.startswith("opentelemetry.sdk.metrics")])
    """
    assert run(script, tmp_path) == "[]\n"


@pytest.mark.processes
def test_a_fork_waits_for_a_measurement_that_is_being_recorded(tmp_path: Path) -> None:
    """Or the child would wait for ever for a lock that only a thread of its parent can release."""
    script = """
    import os, sys, threading
    from opentelemetry.metrics import MeterProvider, NoOpMeter
    from otel_audit.delivery.metrics import AuditMetrics
    from otel_audit.delivery.outcomes import Accepted

    inside, lock = threading.Event(), threading.Lock()

    class Meter(NoOpMeter):
        def create_histogram(self, *arguments, **others):
            return self

        def record(self, *arguments, **others):
            with lock:
                inside.set()
                threading.Event().wait(0.3)

    class Provider(MeterProvider):
        def get_meter(self, name, *more, **others):
            return Meter(name)

    metrics = AuditMetrics(Provider())
    exporting = threading.Thread(target=metrics.exported, args=("otlp", Accepted(), 0.1))
    exporting.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=5) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    metrics.exported("otlp", Accepted(), 0.1)
    exporting.join()
    """
    assert run(script) == "0\n"
