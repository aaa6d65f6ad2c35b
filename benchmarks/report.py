"""The numbers as tables for people, and as one JSON object."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import call_cost, commands, delivery, durability, hostile, loop_lag, middleware, server
from benchmarks.contenders import FEAST, LOGURU, STRUCTLOG, missing
from benchmarks.goals import Goal, goals
from benchmarks.measurement import Series

__all__ = ["Report"]

Numbers = Mapping[str, Mapping[str, Series]]

_US_COLUMNS: Final = ("median", "min", "spread", "ratio")
_HOW_TO_GET: Final = {
    FEAST: (call_cost.FEAST_ROW, "pip install 'feast==0.67.0'"),
    STRUCTLOG: (call_cost.STRUCTLOG_ROW, "pip install structlog"),
    LOGURU: (call_cost.LOGURU_ROW, "pip install loguru"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """All that one run found."""

    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    calls: Numbers
    middleware: Numbers
    server: Numbers
    hostile: Numbers
    delivery: Numbers
    durability: Numbers
    loop: Numbers
    commands: Numbers

    def goals(self) -> list[Goal]:
        """Return what is wanted, beside what was found."""
        return list(
            goals(
                calls=self.calls,
                requests=self.middleware,
                served=self.server,
                delivered=self.delivery,
                loop=self.loop,
                ran=self.commands,
            )
        )

    def show(self, console: Console) -> None:
        """Print the tables."""
        console.print(_calls_table(self.calls))
        console.print(_middleware_table(self.middleware))
        console.print(_server_table(self.server))
        console.print(_hostile_table(self.hostile))
        console.print(_delivery_table(self.delivery))
        console.print(_durability_table(self.durability))
        console.print(_loop_table(self.loop))
        console.print(_commands_table(self.commands))
        console.print(_goals_table(self.goals()))
        for name, value in {**self.options, **self.machine}.items():
            shown = ", ".join(f"{key} {text}" for key, text in value.items()) if isinstance(value, Mapping) else value
            console.print(f"[dim]{name}[/dim] {shown}", highlight=False, soft_wrap=True)

    def as_json(self) -> dict[str, Any]:
        """Every value of every round too, so that others can work out what they want."""
        return {
            "machine": dict(self.machine),
            "options": dict(self.options),
            "call": {row: _json_of(numbers) for row, numbers in self.calls.items()},
            "middleware": {row: _json_of(numbers) for row, numbers in self.middleware.items()},
            "server": {row: _json_of(numbers) for row, numbers in self.server.items()},
            "hostile": {row: _json_of(numbers) for row, numbers in self.hostile.items()},
            "delivery": {row: _json_of(numbers) for row, numbers in self.delivery.items()},
            "durability": {row: _json_of(numbers) for row, numbers in self.durability.items()},
            "loop": {row: _json_of(numbers) for row, numbers in self.loop.items()},
            "commands": {row: _json_of(numbers) for row, numbers in self.commands.items()},
            "goals": [goal.as_json() for goal in self.goals()],
            "missing": {row: remedy for package, (row, remedy) in _HOW_TO_GET.items() if missing(package)},
        }


def _json_of(numbers: Mapping[str, Series]) -> dict[str, Any]:
    return {
        name: {"median": series.median, "min": series.least, "max": series.most, "rounds": list(series.values)}
        for name, series in numbers.items()
    }


def _calls_table(found: Numbers) -> Table:
    table = _table("One call, in microseconds, under an active span", "median", "min", "spread", "p99", "ratio")
    ours = found[call_cost.OURS_ROW][call_cost.MEAN_US].median
    for row, numbers in found.items():
        mean, p99 = numbers[call_cost.MEAN_US], numbers[call_cost.P99_US]
        cells = (f"{mean.median:.1f}", f"{mean.least:.1f}", _spread(mean), f"{p99.median:.0f}")
        table.add_row(row, *cells, f"{mean.median / ours:.2f}", style=_style(row))
    for package, (row, remedy) in _HOW_TO_GET.items():
        if missing(package):
            table.add_row(row, f"not installed: {remedy}", style="dim")
    table.caption = "ratio: how many times the call of otel_audit · spread: the middle half of the rounds"
    return table


def _middleware_table(found: Numbers) -> Table:
    table = _table("A request through the middleware, in microseconds, the application taken off", *_US_COLUMNS)
    bare = found[middleware.BARE_ROW][middleware.US].median
    for row, numbers in found.items():
        took = numbers[middleware.US]
        table.add_row(row, f"{took.median:.1f}", f"{took.least:.1f}", _spread(took), f"{took.median / bare:.2f}")
    table.caption = "ratio: how many times the same event, logged by hand · log_http_request has fewer facts"
    return table


def _server_table(found: Numbers) -> Table:
    title = "A FastAPI application under uvicorn (httptools) and 16 connections"
    table = _table(title, "req/s", "ratio", "goal", "p99 ms", "ratio", "goal", "CPU us", "ratio")
    alone = found[server.ALONE_ROW]
    for row, numbers in found.items():
        goal = server.GOALS.get(row)
        speed = (f"{numbers[server.PER_SECOND].median:,.0f}", _ratio(numbers, alone, server.PER_SECOND))
        p99 = (f"{numbers[server.P99_MS].median:.1f}", _ratio(numbers, alone, server.P99_MS))
        goals = ("", "") if goal is None else (f">= {goal:.2f}", f"<= {server.P99_GOAL:.2f}")
        cpu = (f"{numbers[server.CPU_US].median:.0f}", _ratio(numbers, alone, server.CPU_US))
        table.add_row(row, *speed, goals[0], *p99, goals[1], *cpu)
    table.caption = (
        "ratio: of the application alone, median of the rounds · CPU: of the serving process for a request, until all "
        "is delivered; it holds on a busy machine too"
    )
    return table


def _ratio(numbers: Mapping[str, Series], alone: Mapping[str, Series], name: str) -> str:
    """Return the median ratio of two rows measured in the same rounds, so that what else ran touched both alike."""
    pairs = zip(numbers[name].values, alone[name].values, strict=True)
    return f"{statistics.median(one / other for one, other in pairs):.2f}"


def _hostile_table(found: Numbers) -> Table:
    title = "A request with a hostile text, in milliseconds of CPU, that of the same request with `a` taken off"
    table = _table(title, "median", "min", "spread")
    for row, numbers in found.items():
        took = numbers[hostile.CPU_MS]
        table.add_row(row, f"{took.median:.2f}", f"{took.least:.2f}", _spread(took))
    table.caption = "of some twenty texts, the one that takes most"
    return table


def _delivery_table(found: Numbers) -> Table:
    title = "From the call to the acknowledgement of an OTLP/HTTP receiver in another process"
    table = _table(title, "CPU us/event", "min", "spread", "ratio", "events/s", "lost")
    ours = found[delivery.OURS_ROW][delivery.CPU_US].median
    for row, numbers in found.items():
        cpu, speed, lost = numbers[delivery.CPU_US], numbers[delivery.PER_SECOND], numbers[delivery.LOST]
        cells = (f"{cpu.median:.1f}", f"{cpu.least:.1f}", _spread(cpu), f"{cpu.median / ours:.2f}")
        table.add_row(row, *cells, f"{speed.median:,.0f}", f"{lost.most:.1%}", style=_style(row))
    table.caption = "CPU: of the whole producing process, by event that arrived · lost: in the worst round"
    return table


def _durability_table(found: Numbers) -> Table:
    title = f"{durability.THREADS} threads at once, in microseconds an event, from the first call to the last receipt"
    table = _table(title, *_US_COLUMNS)
    os_only = found[durability.OS_ROW][durability.US_PER_EVENT].median
    for row, numbers in found.items():
        took = numbers[durability.US_PER_EVENT]
        table.add_row(row, f"{took.median:.1f}", f"{took.least:.1f}", _spread(took), f"{took.median / os_only:.2f}")
    table.caption = "one fdatasync serves all that wait · what it takes depends on the disk, see file_system below"
    return table


def _loop_table(found: Numbers) -> Table:
    title = f"Lag of an event loop that logs {loop_lag.PER_SECOND} events a second, in milliseconds"
    table = _table(title, "p99", "worst round", "worst of all")
    for row, numbers in found.items():
        p99, most = numbers[loop_lag.P99_MS], numbers[loop_lag.MAX_MS]
        table.add_row(row, f"{p99.median:.2f}", f"{p99.most:.2f}", f"{most.most:.1f}")
    table.caption = "how much later than asked a sleep of 5 ms ends"
    return table


def _commands_table(found: Numbers) -> Table:
    table = _table("A process of its own", "CPU s", "min", "spread", "MB")
    for row, numbers in found.items():
        cpu, memory = numbers[commands.CPU_S], numbers[commands.MEMORY_MB]
        table.add_row(row, f"{cpu.median:.3f}", f"{cpu.least:.3f}", _spread(cpu), f"{memory.median:.0f}")
    return table


def _goals_table(found: list[Goal]) -> Table:
    table = _table("Goals", "found", "goal", "")
    for goal in found:
        bound = f"{'<=' if goal.at_most else '>='} {goal.bound:g}"
        words = {True: "met", False: "missed", None: "not measured"}
        table.add_row(goal.what, "" if goal.found is None else f"{goal.found:.2f}", bound, words[goal.is_met])
    table.caption = "each ratio is the median of those of the rounds · docs/performance.md explains what is missed"
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _spread(series: Series) -> str:
    return f"±{series.spread / 2:.0%}"


def _style(row: str) -> str:
    return "bold" if row == call_cost.OURS_ROW else ""
