"""What a FastAPI service pays for its audit trail: requests a second and their 99th percentile, under a real load."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.load import P99_MS, PER_SECOND, load
from benchmarks.measurement import Series, interleaved
from benchmarks.receiver import Receiver
from benchmarks.served import PATH, Served, served

__all__ = ["ALONE_ROW", "CPU_US", "GOALS", "P99_GOAL", "P99_MS", "PER_SECOND", "server", "shipping"]

CPU_US: Final = "cpu_us"

ALONE_ROW: Final = "alone"
JOURNAL_ROW: Final = "journal"
OTLP_ROW: Final = "journal, OTLP meanwhile"
SHIP_ROW: Final = "journal, `otel-audit ship`"
GOALS: Final = {JOURNAL_ROW: 0.85, OTLP_ROW: 0.80, SHIP_ROW: 0.85}
"""How many times the requests a second of the application alone there should be at least."""
P99_GOAL: Final = 1.5
"""How many times the 99th percentile of the application alone it should be at most."""

_EVENT: Final = b'"event_type":"http.request"'
_DELIVERED_WITHIN_S: Final = 60.0


@dataclass(slots=True)
class _Row:
    """One server under load: and how many requests it has answered. `directory`: None if it has no trail."""

    server: Served
    directory: Path | None = None
    receiver: Receiver | None = None
    answered: int = 0
    delivered: set[str] = field(default_factory=set)

    def measure(self, seconds: float) -> Mapping[str, float]:
        """Load the server for so long, and wait until all that it delivers has arrived: its CPU time includes that."""
        began_s = self.server.cpu_s
        answered, numbers = load(self.server.port, PATH, seconds)
        self.answered += answered
        deadline = time.monotonic() + _DELIVERED_WITHIN_S
        while self.receiver is not None and len(self.delivered) < self.answered:
            if time.monotonic() > deadline:
                raise RuntimeError(f"expected {self.answered} events to arrive, got {len(self.delivered)}")
            self.delivered |= self.receiver.take()
        return {**numbers, CPU_US: (self.server.cpu_s - began_s) / answered * 1e6}

    def check(self) -> None:
        """Raise RuntimeError unless each request that was answered is in the trail: else nothing was measured."""
        if self.directory is None:
            return
        recorded = sum(path.read_bytes().count(_EVENT) for path in self.directory.rglob("*.jsonl"))
        if recorded != self.answered:
            raise RuntimeError(f"expected {self.answered} events in {self.directory}, got {recorded}")


def server(
    seconds: float, rounds: int, receiver: Receiver, directory: Path, tell: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Requests a second and 99th percentile in milliseconds, `seconds` a row and round, with and without a trail."""
    receiver.take()
    with tempfile.TemporaryDirectory(dir=directory) as place:
        with ExitStack() as servers:
            rows = {name: servers.enter_context(row) for name, row in _rows(Path(place), receiver).items()}

            def measured(row: _Row) -> Callable[[], Mapping[str, float]]:
                return lambda: row.measure(seconds)

            found = interleaved({name: measured(row) for name, row in rows.items()}, rounds, tell)
        for row in rows.values():
            row.check()
    receiver.take()
    return found


def _rows(at: Path, receiver: Receiver) -> dict[str, AbstractContextManager[_Row]]:
    return {
        ALONE_ROW: _row(),
        JOURNAL_ROW: _row(at / "journal", "none"),
        OTLP_ROW: _row(at / "otlp", "otlp", receiver),
        SHIP_ROW: _row(at / "ship", "ship", receiver),
    }


@contextlib.contextmanager
def _row(directory: Path | None = None, export: str = "", receiver: Receiver | None = None) -> Iterator[_Row]:
    variables = {"OTEL_SERVICE_NAME": "benchmark"}
    if directory is not None:
        directory.mkdir()
        variables |= {"OTEL_AUDIT_DIR": str(directory), "OTEL_AUDIT_EXPORT": export}
    if receiver is not None:
        variables |= {
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": receiver.logs_url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
    shipper = shipping(directory, variables) if directory and export == "ship" else contextlib.nullcontext()
    with served(variables) as running, shipper:
        yield _Row(running, directory, receiver)


@contextlib.contextmanager
def shipping(directory: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Run `otel-audit ship` for a directory in a process of its own, with these variables, until the block ends."""
    own = {name: value for name, value in variables.items() if not name.startswith("OTEL_AUDIT_")}
    command = [sys.executable, "-c", "from otel_audit.cli import main; main()", "ship", str(directory)]
    with subprocess.Popen(
        command, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        try:
            yield
        finally:
            child.terminate()
