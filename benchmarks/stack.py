"""Measure the shipped stack by hand: bytes and CPU of each hop to a Loki of your own, and what its dashboards cost.

    python -m benchmarks.stack /path/to/loki --events 504000

Loki is AGPL and no part of this project: build it from its source, or take it out of its image. It is started with
`collector-config/loki.yaml`, the collector with `agent.yaml`; both listen on loopback. CPU time is given beside wall
time, since only the first says anything on a machine that does other work. 504 000 events take some ten minutes.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
import requests

import otel_audit
from otel_audit import AuditEvent, AuditPrincipal
from otel_audit.event import AuditAction, AuditResource, AuditSource
from tests.compose.stack import CONFIGS, dashboards, panels
from tests.compose.test_dashboard import written_out
from tests.servers import Collector, ServerProcess, free_port, poll
from tests.servers.otlp_server import OtlpServer
from tests.servers.ports import LOOPBACK
from tests.servers.process import answers

_RANGE: Final = timedelta(hours=1)  # what a dashboard shows when it is opened
_ACTORS: Final = 5000
_LOGINS: Final = 0.15
_MCP_FROM: Final = 0.85
_TOOLS: Final = ("get_online_features", "list_feature_views", "search_features", "materialize")
_SHIP: Final = Path(sys.executable).with_name("otel-audit")
_OUTCOMES: Final = {"success": 200, "denied": 403, "error": 500}
# Values for the boxes of panels that show nothing without one.
_BOXES: Final = {
    ("audit", "Who touched this target"): {"target": "o-17"},
    ("trail", "What this person did"): {"actor": "u-17"},
    ("trail", "Who touched this target"): {"target": "o-17"},
    ("trail", "What happened in this request"): {"request": "r-100"},
}
_TIMEOUT_S: Final = 1800.0
_SENT: Final = re.compile(r"^otelcol_exporter_sent_log_records\{[^}]*otlp_http/loki[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Loki:
    """A running one."""

    url: str
    pid: int
    data: Path


@click.command()
@click.argument("program", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--events", default=20_000, show_default=True, help="How many events the trail has.")
def main(program: Path, events: int) -> None:
    """Write a trail, send it through the collector to Loki, and ask every query of the dashboards and rules there."""
    with tempfile.TemporaryDirectory(prefix="otel-audit-stack-") as made:
        folder = Path(made)
        last = datetime.now(UTC)
        lines = _written(folder / "journal", events, last)
        _wire(folder / "journal", lines)
        with _loki(program, folder) as loki:
            _delivered(folder, loki, lines)
            _asked(loki, last)


def _written(directory: Path, events: int, last: datetime) -> int:
    """Write the trail of the hour that ends with `last`; print what a line takes. Return the number of lines."""
    chosen = random.Random(7)
    begun = time.process_time()
    with otel_audit.configure(directory=directory, export="none", service_name="shop") as audit:
        for number in range(events):
            event = _event(chosen, number)
            event.timestamp = (last - _RANGE * (1 - number / events)).isoformat()
            audit.log(event)
    cpu_us = (time.process_time() - begun) / events * 1e6
    files = list(directory.glob("*-*.jsonl"))
    lines = sum(path.read_bytes().count(b"\n") for path in files)
    print(f"journal: {sum(path.stat().st_size for path in files) / lines:.0f} bytes a line, {cpu_us:.0f} us of CPU")
    return lines


def _event(chosen: random.Random, number: int) -> AuditEvent:
    """Return a request (seven of ten), a call of an MCP tool or a login, with the fields that a real one has."""
    who, kind = chosen.randrange(_ACTORS), chosen.random()
    person = AuditPrincipal(id=f"u-{who}", username=f"user{who}@example.com", auth_type="oidc", roles=["reader"])
    outcome = chosen.choices(list(_OUTCOMES), [90, 7, 3])[0]
    is_call = kind >= _MCP_FROM
    source = AuditSource(ip=f"192.0.2.{chosen.randrange(250)}", transport="mcp-http" if is_call else "http")
    duration_ms, trace_id = chosen.expovariate(1 / 40), f"{chosen.getrandbits(128):032x}"
    if kind < _LOGINS:
        kind_of_login = "authn.success" if outcome == "success" else "authn.failure"
        return AuditEvent(event_type=kind_of_login, principal=person, source=source, outcome=outcome, trace_id=trace_id)
    if is_call:
        return AuditEvent(
            event_type="mcp.tools.call",
            principal=person,
            source=source,
            action=AuditAction(mcp_tool=chosen.choice(_TOOLS)),
            resource=AuditResource(type="feature_view", name=f"view-{number % 200}"),
            outcome=outcome,
            request_id=f"r-{number}",
            trace_id=trace_id,
            duration_ms=duration_ms,
        )
    return AuditEvent(
        event_type="http.request",
        principal=person,
        source=source,
        action=AuditAction(path=f"/orders/{number % 2000}", method=chosen.choice(["GET", "POST", "PUT"])),
        resource=AuditResource(type="order", name=f"o-{number % 2000}"),
        outcome=outcome,
        request_id=f"r-{number}",
        trace_id=trace_id,
        duration_ms=duration_ms,
        status_code=_OUTCOMES[outcome],
        attributes={"http.route": "/orders/{order}"},
    )


def _ship(directory: Path, endpoint: str, *options: str, **variables: str) -> float:
    """Deliver a directory; the CPU seconds that it took."""
    before = os.times()
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", **variables}
    subprocess.run(
        [_SHIP, "ship", "--once", *options, str(directory)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _wire(directory: Path, lines: int) -> None:
    for compression in ("none", "gzip"):
        with OtlpServer() as sink:
            cpu_s = _ship(directory, sink.base_url, "--again", OTEL_EXPORTER_OTLP_COMPRESSION=compression)
            size = sum(len(request.body) for request in sink.requests)
        print(f"wire, {compression}: {size / lines:.0f} bytes a line, {lines / cpu_s:.0f} lines a CPU second")


@contextmanager
def _loki(program: Path, folder: Path) -> Iterator[Loki]:
    port, data, config = free_port(), folder / "loki", folder / "loki.yaml"
    listening = f"http_listen_port: {port}\n  http_listen_address: {LOOPBACK}\n  grpc_listen_address: {LOOPBACK}"
    text = (CONFIGS / "loki.yaml").read_text(encoding="utf-8").replace("/etc/loki/rules", str(folder / "rules"))
    text = text.replace("/loki/", f"{data}/").replace("path_prefix: /loki", f"path_prefix: {data}")
    text = text.replace("http_listen_port: 3100", f"{listening}\n  grpc_listen_port: {free_port()}")
    config.write_text(text, encoding="utf-8")
    rules = folder / "rules" / "fake"
    rules.mkdir(parents=True)
    (rules / "people.yaml").write_bytes((CONFIGS / "alerts" / "loki" / "people.yaml").read_bytes())
    url = f"http://{LOOPBACK}:{port}"
    command: Sequence[str | Path] = [program, f"-config.file={config}"]
    process = ServerProcess(command, log=folder / "loki.log", ready=lambda: answers(f"{url}/ready"))
    process.start()
    try:
        yield Loki(url, process.pid, data)
    finally:
        process.kill()


def _delivered(folder: Path, loki: Loki, lines: int) -> None:
    with Collector(folder / "collector", loki_endpoint=f"{loki.url}/otlp") as agent:
        before = _cpu_s(loki.pid), _cpu_s(agent.pid)
        cpu_s = _ship(folder / "journal", agent.http_endpoint, "--again")
        poll(lambda: _sent(agent), until=lambda count: count >= lines, timeout_s=_TIMEOUT_S, what="all in Loki")
        of_loki, of_agent = _cpu_s(loki.pid) - before[0], _cpu_s(agent.pid) - before[1]
        archive = sum(path.stat().st_size for path in agent.archive_path.parent.iterdir())
    rates = {"ship": cpu_s, "collector": of_agent, "Loki": of_loki}
    print("; ".join(f"{name}: {lines / each:.0f} lines a CPU second" for name, each in rates.items()))
    requests.post(f"{loki.url}/flush", timeout=120).raise_for_status()
    metrics = f"{loki.url}/metrics"
    poll(lambda: requests.get(metrics, timeout=60).text, until=_is_flushed, timeout_s=120, what="all chunks on disk")
    chunks, whole = _size(loki.data / "chunks"), _size(loki.data)
    print(f"archive: {archive / lines:.0f} bytes a line; Loki: {whole / lines:.0f}, its chunks: {chunks / lines:.0f}")


def _asked(loki: Loki, last: datetime) -> None:
    """Print what each query of the dashboards costs over the hour that ends with `last`."""
    for name in dashboards():
        for panel in panels(name):
            for target in panel.get("targets", []):
                if target["datasource"]["type"] == "loki":
                    query = written_out(target["expr"], **_BOXES.get((name, panel["title"]), {}))
                    _print_cost(loki, f"{name}: {panel['title']}", query, target["queryType"], last.timestamp())


def _print_cost(loki: Loki, title: str, query: str, kind: str, end_s: float) -> None:
    begun, cpu_s = time.monotonic(), _cpu_s(loki.pid)
    if kind == "instant":
        path, when = "query", {"time": f"{end_s:.0f}"}
    else:
        begin_s = end_s - _RANGE.total_seconds()
        path, when = (
            "query_range",
            {"start": f"{begin_s:.0f}", "end": f"{end_s:.0f}", "limit": "500", "step": "60"},
        )
    try:
        answer = requests.get(f"{loki.url}/loki/api/v1/{path}", params={"query": query, **when}, timeout=300)
        said = f"{len(answer.json()['data']['result'])} series" if answer.ok else f"{answer.status_code} {answer.text}"
    except requests.RequestException as error:
        said = type(error).__name__
    print(f"{title}: {said}, {time.monotonic() - begun:.1f} s, {_cpu_s(loki.pid) - cpu_s:.1f} s of CPU", flush=True)


def _sent(agent: Collector) -> int:
    """Return how many records Loki has taken, as the collector counts them. Asking Loki would cost it a whole scan."""
    found = _SENT.search(agent.metrics())
    return int(float(found[1])) if found else 0


def _is_flushed(metrics: str) -> bool:
    return "\nloki_ingester_flush_queue_length 0\n" in metrics and "\nloki_ingester_chunks_flushed_total{" in metrics


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
