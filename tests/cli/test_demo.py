"""`otel-audit demo` as a process: what it shows, what it leaves behind, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.chain_check import application_events, read_streams
from tests.servers import Collector, Record, poll
from tests.servers.otlp_server import OtlpServer, accepted

pytestmark = pytest.mark.processes

SECRETS = ("hunter2", "sunflower-42", "bicycle-17", "turnip-99")
KINDS = {
    ("http.request", "success"),
    ("http.request", "denied"),
    ("http.request", "failure"),
    ("http.request", "error"),
    ("http.request", "cancelled"),
    ("mcp.tools.call", "success"),
    ("mcp.tools.call", "error"),
    ("mcp.tools.call", "denied"),
    ("authn.success", "success"),
    ("authn.failure", "failure"),
    ("authz.decision", "allow"),
    ("authz.decision", "deny"),
}

COMMAND = (sys.executable, "-c", "from otel_audit.cli import main; main()", "demo")


def _environment(tmp_path: Path, variables: dict[str, str]) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**plain, "TMPDIR": str(tmp_path), **variables}


class Demo:
    """A demo that goes on until it is stopped. What it writes goes to files: a full pipe would hold it up."""

    def __init__(self, place: Path, options: tuple[str, ...], variables: dict[str, str]) -> None:
        self._stdout, self._stderr = place / "stdout", place / "stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, "--seconds", "0", "--rate", "200", *options],
                env=_environment(place, variables),
                stdout=stdout,
                stderr=stderr,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
        """What it wrote to stdout and stderr, after it ended without an error."""
        self.process.send_signal(number)
        status = self.process.wait(120)
        printed, shown = (path.read_text(encoding="utf-8") for path in (self._stdout, self._stderr))
        assert status == 0, shown
        return printed, shown


@contextmanager
def _started(tmp_path: Path, *options: str, **variables: str) -> Iterator[Demo]:
    demo = Demo(tmp_path, options, variables)
    try:
        yield demo
    finally:
        demo.process.kill()
        demo.process.wait()


def _lines(directory: Path) -> list[dict[str, Any]]:
    """The events so far, while lines are still being written."""
    whole = [piece for path in directory.glob("*-*.0*.jsonl") for piece in path.read_bytes().split(b"\n")[:-1]]
    return [event for line in whole if "system" not in (event := json.loads(line))]


def _kinds(events: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(event["event_type"], event["outcome"]) for event in events}


def _until_everything_happened(directory: Path) -> None:
    poll(lambda: _kinds(_lines(directory)), until=KINDS.issubset, what="every kind of event")


class Ended(NamedTuple):
    """A demo in which everything happened, and that was stopped then."""

    directory: Path
    printed: str
    shown: str
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    place = tmp_path_factory.mktemp("demo")
    with _started(place, "--dir", str(place / "journal")) as demo:
        _until_everything_happened(place / "journal")
        printed, shown = demo.stop()
    return Ended(place / "journal", printed, shown, application_events(place / "journal"))


def test_everything_that_can_become_of_a_request_happens_is_shown_and_is_in_the_journal(ended: Ended) -> None:
    count = len(ended.events)
    assert _kinds(ended.events) == KINDS
    assert f"{count} events: {count} delivered, 0 pending, 0 quarantined, 0 dropped" in ended.printed
    assert len([line for line in ended.shown.split("\n") if re.match(r"\d\d:\d\d:\d\d\.\d{3}Z ", line)]) == count
    assert f"otel-audit tail {ended.directory}" in ended.printed


def test_every_event_belongs_to_the_trace_of_its_request(ended: Ended) -> None:
    by_request: dict[str, set[str]] = {}
    for event in ended.events:
        by_request.setdefault(event["request_id"], set()).add(event["trace_id"])

    assert {len(traces) for traces in by_request.values()} == {1}
    assert len(set.union(*by_request.values())) == len(by_request)


def test_no_password_or_token_is_shown_or_kept(ended: Ended) -> None:
    left = "".join(path.read_text(encoding="utf-8") for path in ended.directory.glob("*.jsonl"))
    assert [secret for secret in SECRETS if secret in ended.printed + ended.shown + left] == []
    failed = next(event for event in ended.events if event["event_type"] == "authn.failure")
    assert failed["redacted"] == ["$.detail"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_it_with_every_event_delivered_and_no_lock_left(tmp_path: Path, number: signal.Signals) -> None:
    # Nothing is delivered before the end, unless the end sees to it.
    late = {"OTEL_AUDIT_EXPORT": "jsonl", "OTEL_AUDIT_BATCH_DELAY_S": "60"}
    with _started(tmp_path, OTEL_AUDIT_DIR=str(tmp_path / "journal"), **late) as demo:
        poll(lambda: len(_lines(tmp_path / "journal")), until=lambda count: count > 20, what="some events")
        printed, _ = demo.stop(number)

    assert " 0 pending" in printed
    assert list((tmp_path / "journal").glob("*.writer.lock")) == []


def test_it_verifies_the_journal_and_names_the_line_that_it_changed_in_a_copy(ended: Ended) -> None:
    directory, printed = ended.directory, ended.printed
    [lines] = read_streams(directory).values()
    count = len(lines)
    assert f" verify {directory}\nCONSISTENT: " in printed
    assert f"lines 1 to {count}, chained to {count}, signed to {count}\n" in printed
    change = re.search(r'one byte of a copy is changed, "([A-Z]+ \S+ -> )4(\d\d)" to "\1[2]\2":', printed)
    assert change is not None, printed
    told = re.search(r"\nBROKEN: .* line (\d+) was changed: ", printed)
    assert told is not None, printed
    assert lines[int(told[1]) - 1]["detail"] == f"{change[1]}4{change[2]}"
    assert list(directory.parent.glob("otel-audit-demo-*")) == []


def test_it_begins_no_ledger_against_the_setting(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    printed = subprocess.run(
        [*COMMAND, "--seconds", "0.2", "--dir", str(journal)],
        env=_environment(tmp_path, {"OTEL_AUDIT_LEDGER": "false"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "\nCONSISTENT: " in printed
    assert "\nBROKEN: " in printed

    assert list(journal.glob("ledger.0*")) == []


def test_without_a_directory_it_makes_a_new_one_and_says_which(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--seconds", "1", "--rate", "50"],
        env=_environment(tmp_path, {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    [directory] = tmp_path.glob("otel-audit-demo-*")
    assert f"otel-audit status {directory}" in done.stdout
    assert 0 < len(application_events(directory)) < 200  # the rate is kept


@pytest.mark.parametrize("is_active", [True, False])
def test_the_commands_that_it_names_can_be_typed_as_they_are_shown(is_active: bool, tmp_path: Path) -> None:
    installed = Path(sys.executable).with_name("otel-audit")
    path = f"{installed.parent}{os.pathsep}{os.defpath}" if is_active else os.defpath

    done = subprocess.run(
        [installed, "demo", "--seconds", "0.1", "--dir", tmp_path / "journal"],
        env=_environment(tmp_path, {"PATH": path}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    (shown,) = [line.strip() for line in done.stdout.splitlines() if " tail " in line]
    assert shown == f"{'otel-audit' if is_active else installed} tail {tmp_path / 'journal'}"


def ids_in(records: list[Record]) -> list[str]:
    """The ids of the events among the records, without those of the lines of the journal and the ledger."""
    return sorted(each.attributes["audit.record.id"] for each in records if not each.event_name.startswith("audit."))


def test_with_an_endpoint_the_same_events_reach_the_collector(tmp_path: Path, collector: Collector) -> None:
    endpoint = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces",  # nobody is there: no reason to fail
    }
    with _started(tmp_path, "--dir", str(tmp_path / "journal"), **endpoint) as demo:
        _until_everything_happened(tmp_path / "journal")
        demo.stop()

    names = sorted(event["event_id"] for event in application_events(tmp_path / "journal"))
    records = poll(collector.archive, until=lambda found: len(ids_in(found)) >= len(names), what="the archived records")
    assert ids_in(records) == names
    assert {record.resource["service.name"] for record in records} == {"otel-audit-demo"}


def test_spans_go_straight_to_their_own_endpoint_and_are_those_of_the_events(tmp_path: Path) -> None:
    with OtlpServer() as tempo:
        tempo.will_answer(accepted())
        traces = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{tempo.base_url}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        }
        with _started(tmp_path, "--dir", str(tmp_path / "journal"), **traces) as demo:
            _until_everything_happened(tmp_path / "journal")
            demo.stop()
        exported = {
            (span.trace_id.hex(), span.span_id.hex())
            for received in tempo.requests
            for resource_spans in ExportTraceServiceRequest.FromString(received.body).resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        }

    events = application_events(tmp_path / "journal")
    assert {(event["trace_id"], event["span_id"]) for event in events} <= exported


def test_the_last_metrics_that_are_sent_count_every_event(tmp_path: Path) -> None:
    with OtlpServer() as prometheus:
        prometheus.will_answer(accepted())
        metrics = {
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{prometheus.base_url}/v1/metrics",
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
        }
        with _started(tmp_path, "--dir", str(tmp_path / "journal"), **metrics) as demo:
            _until_everything_happened(tmp_path / "journal")
            demo.stop()
        [last] = ExportMetricsServiceRequest.FromString(prometheus.requests[-1].body).resource_metrics

    sums = {
        metric.name: sum(point.as_int for point in metric.sum.data_points)
        for scope in last.scope_metrics
        for metric in scope.metrics
    }
    assert sums["audit.records.emitted"] == len(application_events(tmp_path / "journal"))
    assert sums["audit.queue.depth"] == 0
    assert "otel-audit-demo" in {each.value.string_value for each in last.resource.attributes}


def test_a_wrong_setting_is_wrong_usage_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        COMMAND,
        env=_environment(tmp_path, {"OTEL_AUDIT_BATCH_COUNT": "many"}),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 2
    assert "OTEL_AUDIT_BATCH_COUNT" in done.stderr
    assert list(tmp_path.iterdir()) == []
