"""`python -m benchmarks.ledger`: CPU time and the end of a process, with the signed ledger and without.

Processes of their own that log into one directory, as the workers of a server do. Each begins with an event and waits
until its stream is open in the ledger; then what is measured begins. CPU is that of the whole process, its threads and
its close included. The directory keeps its ledger from round to round, so that a turn finds a long one.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

import otel_audit
from benchmarks.measurement import Series, interleaved

__all__ = ["CLOSE_MS", "CPU_US", "LEDGER_ROW", "PLAIN_ROW", "ledger"]

PLAIN_ROW: Final = "without the ledger"
LEDGER_ROW: Final = "with it"
CPU_US: Final = "cpu_us"
CLOSE_MS: Final = "close_ms"
_SETTLE_S: Final = 1.2  # a stream is opened in the ledger within a second
_BURST: Final = 50
_PAUSE_S: Final = 0.002  # between two bursts, as a server has it between requests


def ledger(
    events: int, processes: int, rounds: int, directory: Path, tell: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Return microseconds of CPU an event, and milliseconds of `close()`: the means of the processes of a round."""

    def measured(*, is_kept: bool) -> Mapping[str, float]:
        place = directory / ("signed" if is_kept else "plain")
        command = [sys.executable, "-m", "benchmarks.ledger", "--events", str(events), "--child", str(place)]
        started = [
            subprocess.Popen([*command, *(["--signed"] if is_kept else [])], stdout=subprocess.PIPE)
            for _ in range(processes)
        ]
        found = [json.loads(each.communicate()[0]) for each in started]
        return {name: sum(each[name] for each in found) / processes for name in (CPU_US, CLOSE_MS)}

    return interleaved(
        {PLAIN_ROW: lambda: measured(is_kept=False), LEDGER_ROW: lambda: measured(is_kept=True)}, rounds, tell
    )


def _log(events: int, directory: Path, *, is_kept: bool) -> dict[str, float]:
    audit = otel_audit.configure(directory=directory, export="none", service_name="benchmark", ledger=is_kept)
    principal = otel_audit.AuditPrincipal(username="alice", roles=["reader"], auth_type="oidc")

    def log() -> None:
        audit.log_mcp_call(tool_name="get_online_features", principal=principal, outcome="success")

    log()
    time.sleep(_SETTLE_S)
    # A process has its first full collection sooner with the ledger, whose list grows: it would count for one row only.
    gc.collect()
    begin = time.process_time()
    for number in range(events):
        log()
        if not number % _BURST:
            time.sleep(_PAUSE_S)
    ended = time.perf_counter()
    audit.close()
    close_s, cpu_s = time.perf_counter() - ended, time.process_time() - begin
    return {CPU_US: cpu_s / events * 1e6, CLOSE_MS: close_s * 1e3}


@click.command()
@click.option("--events", type=click.IntRange(min=1), default=20_000, show_default=True, help="Events of a process.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="How many log at once.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="How often each is measured.")
@click.option("--child", type=click.Path(path_type=Path), hidden=True)
@click.option("--signed", is_flag=True, hidden=True)
def main(events: int, processes: int, rounds: int, child: Path | None, signed: bool) -> None:
    """Measure what the signed ledger costs a process."""
    if child is not None:
        click.echo(json.dumps(_log(events, child, is_kept=signed)))
        return
    with tempfile.TemporaryDirectory() as place:
        found = ledger(events, processes, rounds, Path(place), lambda said: click.echo(said, err=True))
    for row, numbers in found.items():
        cpu, close = numbers[CPU_US], numbers[CLOSE_MS]
        click.echo(
            f"{row:20} {cpu.least:7.2f} us of CPU an event ({cpu.median:.2f} median), "
            f"close {close.least:6.1f} ms ({close.median:.1f} median)"
        )


if __name__ == "__main__":
    main()
