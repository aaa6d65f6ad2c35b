"""`otel-audit query`: find events in a trail, or ask about it in SQL."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.cells import cell_len

from otel_audit.access import Look
from otel_audit.cli.command import WRONG_USAGE
from otel_audit.cli.options import GivenCount, GivenMoment, GivenPath, ParamType, recorded_access
from otel_audit.cli.source import opened_source, places_of, progress_bar, source_errors
from otel_audit.delivery.console import Terminal
from otel_audit.errors import AuditError
from otel_audit.notices import escaped, escaped_json
from otel_audit.query.database import Found, TrailDatabase
from otel_audit.query.filters import WORDS, Filters, Place
from otel_audit.query.unanswered import QueryFailed, QueryUnanswered

__all__ = ["query"]

_SHOWN: Final = 100  # where people read; programs get all
_AT_ONCE: Final = 500
_CELL_MAX: Final = 80
_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[-+][0-9]+)?")

F = TypeVar("F", bound=Callable[..., Any])


class _Utf8(ParamType[str]):
    """A text in UTF-8. In an argument, Python turns each byte that is not UTF-8 into half a surrogate."""

    name = "text"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See `click.ParamType`."""
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"expected a text in UTF-8, got other bytes in {escaped(text)!r}; write it in UTF-8", param, ctx)
        return text


class _Page(ParamType[Place]):
    """The place after which an answer continues."""

    name = "page"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """See `click.ParamType`."""
        if isinstance(value, Place):
            return value
        try:
            return Place.parse(_Utf8().convert(value, param, ctx))
        except AuditError as error:
            self.fail(escaped(str(error)), param, ctx)


_WORD_HELP: Final = {
    "actor": "Who did it: the id or the name.",
    "on_behalf_of": "For whom it was done.",
    "tool": "The MCP tool.",
    "path": "The path of the request.",
    "target": "What it was done to: NAME or TYPE/NAME.",
    "outcome": "How it ended, as it was logged, or: success, failure, denied, error, cancelled, unknown.",
    "type": "The event type, such as http.request.",
    "service": "The `service.name` of its writer.",
    "trace": "The trace id.",
    "request": "The request id.",
    "tag": "A word that the policy gave it, such as privileged.",
}


def _word_options(command: F) -> F:
    for name in reversed(list(WORDS)):
        command = click.option(f"--{name.replace('_', '-')}", name, type=_Utf8(), multiple=True, help=_WORD_HELP[name])(
            command
        )
    return command


@click.command()
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@_word_options
@click.option("--since", "since_ns", type=GivenMoment(), help="From this time on: 2d, 3h, today, 2026-11-29T08:00Z.")
@click.option("--until", "until_ns", type=GivenMoment(), help="Before this time.")
@click.option("--text", type=_Utf8(), default="", help="A text anywhere in the line, in upper or lower case.")
@click.option("--limit", type=GivenCount(min=1), help="The most events to show.  [default: 100 in a table, else all]")
@click.option("--page", type=_Page(), help="Continue after a page, at the place that it printed.")
@click.option("--sql", type=_Utf8(), help="A SELECT over the view `events`; docs/query.md has its columns.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: journal lines, or the rows of --sql.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a header; every column but `line`.")
@click.option(
    "--out", metavar="FILE.parquet", type=GivenPath(dir_okay=False), help="Write all columns to a Parquet file."
)
@click.pass_context
def query(
    ctx: click.Context,
    /,
    sources: Sequence[str],
    since_ns: int | None,
    until_ns: int | None,
    text: str,
    limit: int | None,
    page: Place | None,
    sql: str | None,
    as_json: bool,
    as_csv: bool,
    out: Path | None,
    **words: Sequence[str],
) -> None:
    """Find events in a trail, the newest first, or ask about it in SQL.

    SOURCE is the directory of a journal, an archive, packed files, a log of events, or the URL of a log store; by
    default the directory of the settings. With several, an event that is in more than one of them is found once.

    An event has to match every filter. If a filter is given more than once, any of its words may match. A * in a word
    stands for any text.
    """
    filters = Filters(words, since_ns, until_ns, text, page)
    if sum((as_json, as_csv, out is not None)) > 1:
        raise click.UsageError("expected one of --json, --csv and --out, got several; run it once for each", ctx)
    if sql is not None and filters != Filters(dict.fromkeys(WORDS, ())):
        raise click.UsageError("--sql goes with no filter: write it into the WHERE of the question", ctx)
    if limit is None and not (as_json or as_csv or out is not None):
        limit = _SHOWN
    asked = [f"sql={sql}"] if sql is not None else filters.asked()
    with source_errors(ctx), ExitStack() as stack:
        places = places_of(ctx, sources)
        if (
            out is not None
            and out.is_file()
            and any(out.resolve().is_relative_to(Path(each).resolve()) for each in places)
        ):
            raise click.UsageError(f"expected a FILE outside of the trail, got {escaped(str(out))}; give another", ctx)
        look = stack.enter_context(recorded_access("query", places, asked, since_ns=since_ns, until_ns=until_ns))
        stores = [stack.enter_context(opened_source(ctx, source)) for source in sources or (None,)]
        with progress_bar("reading", lambda: None) as passed:
            database = stack.enter_context(
                TrailDatabase(stores, out=out, asked=filters if sql is None else None, passed=passed)
            )
        try:
            _Answer(database, places, filters, sql, limit, look).give(as_json=as_json, as_csv=as_csv, out=out)
        except QueryUnanswered as error:
            if sql is None or isinstance(error, QueryFailed):
                raise
            raise _WrongQuestion(f"--sql: {escaped(str(error))}") from error
        for said in database.gathered.unread():
            click.echo(said, err=True)


class _WrongQuestion(click.ClickException):
    """A mistake in SQL, which the usage of the command would not explain."""

    exit_code = WRONG_USAGE


class _Answer:
    """One question, and how its answer is given."""

    def __init__(
        self,
        database: TrailDatabase,
        places: Sequence[str],
        filters: Filters,
        sql: str | None,
        limit: int | None,
        look: Look,
    ) -> None:
        self._database = database
        self._places = places
        self._look = look
        self._filters = filters
        self._sql = sql
        self._limit = limit

    def give(self, *, as_json: bool, as_csv: bool, out: Path | None) -> None:
        if out is not None:
            count = self._database.write_parquet(*self._question())
            self._look.add(count)
            click.echo(f"{count} rows written to {escaped(str(out))}", err=True)
        elif as_csv:
            self._give_csv()
        elif self._sql is None:
            self._give_events(as_json=as_json)
        elif as_json:
            for row in self._database.objects(*self._question()):
                self._look.add(1)
                click.echo(escaped_json(row))
        else:
            self._give_table()

    def _question(self) -> tuple[str, Sequence[object]]:
        if self._sql is None:
            return self._database.select(self._filters, self._limit)
        return (self._sql if self._limit is None else self._database.limited(self._sql, self._limit)), ()

    def _give_events(self, *, as_json: bool) -> None:
        found = self._database.find(self._filters, None if self._limit is None else self._limit + 1)
        terminal = Terminal(sys.stdout, dated=True)
        count, last = 0, None
        while portion := list(islice(found, _AT_ONCE if self._limit is None else min(_AT_ONCE, self._limit - count))):
            self._look.add(len(portion))
            if as_json:
                sys.stdout.buffer.write(b"".join(map(_shown_json, portion)))
                sys.stdout.buffer.flush()
            else:
                terminal.write(lambda view, portion=portion: (view.show(each.line) for each in portion))  # type: ignore[misc]  # a default for the loop
            count, last = count + len(portion), portion[-1].place
        if last is not None and next(found, None) is not None:
            click.echo(f"{count} events shown; for older ones: --page {last}", err=True)
        elif not count:
            click.echo(f"no event found in {', '.join(map(escaped, self._places))}", err=True)

    def _give_csv(self) -> None:
        question, values = self._question()
        names, rows = self._database.rows(question, values)
        kept = [index for index, name in enumerate(names) if name != "line" or self._sql is not None]
        shown = escaped if sys.stdout.isatty() else str
        sys.stdout.write(_csv_line([names[index] for index in kept]))
        for row in rows:
            self._look.add(1)
            sys.stdout.write(_csv_line([shown(_as_text(row[index] or "")) for index in kept]))
        sys.stdout.flush()

    def _give_table(self) -> None:
        question, values = self._question()
        names, rows = self._database.rows(question, values)
        is_cut = sys.stdout.isatty()  # a program that reads a pipe needs the whole text
        shown = [[escaped(name) for name in names]]
        widths: Sequence[int] = [0] * len(names)
        count = 0
        while portion := [[_cell(value, is_cut=is_cut) for value in row] for row in islice(rows, _AT_ONCE)]:
            self._look.add(len(portion))
            count += len(portion)
            widths = _print_columns([*shown, *portion], widths)
            shown = []
        _print_columns(shown, widths)
        if count == self._limit:
            click.echo(f"the first {count} rows; for more: --limit", err=True)


def _as_text(field: str) -> str:
    """Return a field that no spreadsheet takes for a formula, which could run a command or send the other cells away.

    Whoever calls a service chooses its user agent and path, and perhaps a name. Numbers stay as they are.

    Source: OWASP, "CSV Injection"; CWE-1236.
    """
    return f"'{field}" if field.startswith(_FORMULAS) and _NUMBER.fullmatch(field) is None else field


def _csv_line(fields: Sequence[str]) -> str:
    """Return one line of RFC 4180 that ends as a shell expects, so that `| tail -n 1` gives an id and no CR.

    The writer's own `lineterminator` cannot be changed for this, since up to Python 3.12 a CR in a field would no
    longer be quoted.
    """
    line = io.StringIO()
    csv.writer(line).writerow(fields)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _shown_json(found: Found) -> bytes:
    return escaped_json(found.line.decode("utf-8", "backslashreplace")).encode() + b"\n"


def _cell(value: str | None, *, is_cut: bool) -> str:
    text = "-" if value is None else escaped(value)
    return text if len(text) <= _CELL_MAX or not is_cut else text[: _CELL_MAX - 1] + "…"


def _print_columns(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Sequence[int]:
    """Print rows in columns of at least these widths. Return the widths of the columns."""
    if rows:
        columns = zip(widths, *([cell_len(text) for text in row] for row in rows), strict=True)
        widths = [max(column) for column in columns]
    for row in rows:
        padded: Iterable[str] = (text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())
    return widths
