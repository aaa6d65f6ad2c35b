"""`python -m benchmarks`: everything side by side, in one run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import click
from rich.console import Console

from benchmarks.call_cost import call_cost
from benchmarks.commands import commands
from benchmarks.delivery import delivery
from benchmarks.durability import durability
from benchmarks.hostile import hostile
from benchmarks.loop_lag import loop_lag
from benchmarks.machine import machine
from benchmarks.middleware import middleware
from benchmarks.receiver import receiver
from benchmarks.report import Report
from benchmarks.server import server
from benchmarks.workload import calls

_SHORT: Final = (2, 200, 500, 0.2, 20)  # rounds, call_events, delivery_events, server_seconds, streams


class _Options(NamedTuple):
    rounds: int
    seed: int
    call_events: int
    delivery_events: int
    server_seconds: float
    streams: int


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True, help="How often each is measured.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the mix of events.")
@click.option("--call-events", type=click.IntRange(min=1), default=5000, show_default=True, help="Calls a round.")
@click.option(
    "--delivery-events", type=click.IntRange(min=1), default=10_000, show_default=True, help="Events delivered a round."
)
@click.option(
    "--server-seconds",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="How long each server is under load in a round.",
)
@click.option(
    "--streams", type=click.IntRange(min=1), default=1766, show_default=True, help="Streams that `status` looks at."
)
@click.option("--short", is_flag=True, help="So few events that it ends at once; the numbers mean little.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write every value of every round to this file too, as one JSON object.",
)
def main(
    rounds: int,
    seed: int,
    call_events: int,
    delivery_events: int,
    server_seconds: float,
    streams: int,
    short: bool,
    json_file: Path | None,
) -> None:
    """Measure audit logging side by side: a call, a request, CPU up to the acknowledgement, events a second, fsync."""
    if short:
        rounds, call_events, delivery_events, server_seconds, streams = _SHORT
    options = _Options(rounds, seed, call_events, delivery_events, server_seconds, streams)
    for name in [name for name in os.environ if name.startswith(("OTEL_", "FEAST_"))]:
        del os.environ[name]  # every contender at its defaults, whatever this shell exports
    report = _measured(options, _teller())
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    report.show(Console(width=max(110, Console().width)))


def _measured(options: _Options, tell: Callable[[str], None]) -> Report:
    with tempfile.TemporaryDirectory(prefix="otel-audit-benchmark-") as place, receiver() as sink:
        directory = Path(place)
        facts = machine(directory)
        one_call = calls(options.call_events, options.seed)
        delivered = calls(options.delivery_events, options.seed)
        return Report(
            machine=facts,
            options=options._asdict(),
            calls=call_cost(one_call, options.rounds, sink, directory, tell),
            middleware=middleware(options.call_events, options.rounds, directory, tell),
            server=server(options.server_seconds, options.rounds, sink, directory, tell),
            hostile=hostile(options.rounds, directory, tell),
            delivery=delivery(delivered, options.rounds, sink, directory, tell),
            durability=durability(one_call, options.rounds, directory, tell),
            loop=loop_lag(delivered, options.rounds, sink, directory, tell),
            commands=commands(options.streams, options.rounds, directory, tell),
        )


def _teller() -> Callable[[str], None]:
    """Says on a terminal what is being measured; nothing where nobody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return lambda text: None
    return lambda text: console.print(f"{text:<70}", end="\r", style="dim")


if __name__ == "__main__":
    main()
