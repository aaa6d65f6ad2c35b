"""`python -m benchmarks.query`: how fast a trail answers who did what, beside a plain read and a grep of its bytes.

One journal of usual events by a thousand people, and the same packed as Parquet, both in the page cache. A question
opens the trail anew, as the command does, and asks for all events of one person, or for the newest hundred. CPU seconds
are those of all cores together; the answer is there sooner by as many as are idle.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import click

from benchmarks.measurement import Series, interleaved
from otel_audit import AuditLogger, AuditPrincipal, AuditResource, Settings
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters
from otel_audit.query.packing import Packing
from otel_audit.stores.location import open_store
from otel_audit.trail import Trail

__all__ = ["CPU_S", "querying"]

CPU_S: Final = "cpu_s"
WALL_S: Final = "wall_s"
_PEOPLE: Final = 1000
_PAGE: Final = 100
_READ_BYTES: Final = 1 << 20
_READ_ROW: Final = "a plain read of the journal"
_GOALS_S: Final = {"journal, all of one person": 1.0, "Parquet, the newest 100 of one person": 0.1}


class _Made(NamedTuple):
    """A journal, the same in Parquet, and the bytes of both."""

    journal: Path
    packed: Path
    journal_bytes: int
    packed_bytes: int


def querying(events: int, rounds: int, directory: Path, tell: Callable[[str], None]) -> dict[str, dict[str, Series]]:
    """Return CPU and wall seconds of each way to find the events of one person."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        return _measured(_make(Path(place), events, tell), rounds, tell)


def _measured(made: _Made, rounds: int, tell: Callable[[str], None]) -> dict[str, dict[str, Series]]:
    name = _name(_PEOPLE // 2)
    found = len(_found(made.journal, name, None))
    if _found(made.packed, name, None) != _found(made.journal, name, None):
        raise RuntimeError("expected the same answer from the journal and from Parquet, got another")
    tell(f"{found} events of {name}")
    ways: dict[str, Callable[[], object]] = {
        _READ_ROW: lambda: _read(made.journal),
        "grep -c NAME": lambda: subprocess.run(
            ["grep", "-c", name, *map(str, made.journal.glob("*-*.jsonl"))], check=True, stdout=subprocess.PIPE
        ),
        "journal, all of one person": lambda: _found(made.journal, name, None),
        "journal, the newest 100 of one person": lambda: _found(made.journal, name, _PAGE),
        "journal, the newest 100 of all": lambda: _found(made.journal, None, _PAGE),
        "Parquet, all of one person": lambda: _found(made.packed, name, None),
        "Parquet, the newest 100 of one person": lambda: _found(made.packed, name, _PAGE),
        "Parquet, the newest 100 of all": lambda: _found(made.packed, None, _PAGE),
    }
    return interleaved({row: _timed(way) for row, way in ways.items()}, rounds, tell)


def _found(trail: Path, name: str | None, limit: int | None) -> list[bytes]:
    asked = Filters({"actor": [name]}) if name is not None else Filters()
    with open_store(trail) as store, TrailDatabase([store]) as database:
        return [each.line for each in database.find(asked, limit)]


def _read(journal: Path) -> None:
    for path in journal.glob("*-*.jsonl"):
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass


def _timed(way: Callable[[], object]) -> Callable[[], Mapping[str, float]]:
    def measured() -> Mapping[str, float]:
        begin, cpu = time.perf_counter(), _cpu_s()
        way()
        return {CPU_S: _cpu_s() - cpu, WALL_S: time.perf_counter() - begin}

    return measured


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _name(number: int) -> str:
    return f"user-{number:04d}@example.com"


def _make(directory: Path, events: int, tell: Callable[[str], None]) -> _Made:
    journal, packed = directory / "journal", directory / "packed"
    tell(f"{events} events are written")
    settings = Settings.load(
        {"OTEL_AUDIT_DIR": str(journal), "OTEL_SERVICE_NAME": "benchmark", "OTEL_AUDIT_EXPORT": "none"}
    )
    chosen = random.Random(1)
    with AuditLogger(Trail(settings)) as audit:
        for number in range(events):
            who = chosen.randrange(_PEOPLE)
            principal = AuditPrincipal(username=_name(who), id=f"00u{who:04d}", roles=["analyst"], auth_type="oidc")
            if number % 2:
                path = f"/orders/{number}"
                audit.log_http_request(method="GET", path=path, status_code=200, principal=principal, duration_ms=1.25)
            else:
                view = AuditResource(type="feature_view", name="driver_stats")
                audit.log_mcp_call(tool_name="get_features", principal=principal, resource=view, duration_ms=1.25)
    tell("they are packed")
    packed.mkdir()
    with open_store(journal) as store, TrailDatabase([store], out=packed) as database:
        packing = Packing(database, packed)
        for day in packing.days():
            packing.pack(day)
    return _Made(
        journal,
        packed,
        sum(path.stat().st_size for path in journal.glob("*-*.jsonl")),
        sum(path.stat().st_size for path in packed.rglob("*.parquet")),
    )


@click.command()
@click.option("--events", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Events of the trail.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How often each is measured.")
def main(events: int, rounds: int) -> None:
    """Measure how fast a trail is searched for one person."""
    with tempfile.TemporaryDirectory() as place:
        made = _make(Path(place), events, lambda said: click.echo(said, err=True))
        found = _measured(made, rounds, lambda said: click.echo(said, err=True))
    click.echo(
        f"{events} events: {made.journal_bytes / 1e6:.0f} MB of lines, {made.packed_bytes / 1e6:.0f} MB of Parquet, "
        f"{made.packed_bytes / events:.0f} bytes an event; {os.cpu_count()} cores"
    )
    plain = found[_READ_ROW][CPU_S].median
    click.echo(f"{'':40} {'CPU s':>7} {'wall s':>7} {'events/CPU s':>13} {'of a read':>9}")
    for row, numbers in found.items():
        cpu, wall = numbers[CPU_S].median, numbers[WALL_S].median
        click.echo(f"{row:40} {cpu:7.2f} {wall:7.2f} {events / cpu:13,.0f} {cpu / plain:9.1f}")
    for row, bound_s in _GOALS_S.items():
        least = found[row][WALL_S].least
        click.echo(f"goal at 1 000 000 events: {row} in {bound_s} s: {least:.2f} s in the fastest round")


if __name__ == "__main__":
    main()
