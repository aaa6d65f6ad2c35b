"""`otel-audit report`: one HTML file about a trail, for somebody who has to trust it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click

from otel_audit.access import AccessUnrecorded
from otel_audit.cli.options import GivenCount, GivenMoment, GivenPath, recorded_access, unreadable
from otel_audit.cli.source import opened_source, places_of, progress_bar
from otel_audit.cli.verify import GivenKey, GivenKnown, verdict_words
from otel_audit.errors import ProofUnavailable
from otel_audit.journal.files import replace_file, replacing_file
from otel_audit.notices import escaped, shown_json
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters
from otel_audit.query.unanswered import QueryUnanswered
from otel_audit.reporting.activity import activity_in
from otel_audit.reporting.evidence import EVENTS_PARQUET, Evidence
from otel_audit.reporting.page import page_of
from otel_audit.reporting.report import TrailReport
from otel_audit.signing.keys import VerifierKey
from otel_audit.stores.location import NothingStored
from otel_audit.stores.store import Kind, Store, StoreUnreadable
from otel_audit.verification.archive import verify_store
from otel_audit.verification.directory import bytes_of
from otel_audit.verification.findings import Report
from otel_audit.verification.pins import KnownNote, Pins
from otel_audit.verification.verify import verify_directory

__all__ = ["report"]

_ROWS: Final = 100
_ROWS_MAX: Final = 10_000
_MODE: Final = 0o600  # it names people, and what they did


@click.command()
@click.argument("source", required=False)
@click.option("--out", metavar="FILE.html", type=GivenPath(), help="Where to write the page.")
@click.option(
    "--evidence",
    metavar="FILE.zip",
    type=GivenPath(),
    help="Where to write the events, with all that an auditor needs to check them.",
)
@click.option(
    "--prove",
    "event_ids",
    metavar="EVENT_ID",
    multiple=True,
    help="With --evidence, an event that gets a proof of its own. May be given more than once.",
)
@click.option("--since", "since_ns", type=GivenMoment(), help="From this time on: 2d, 3h, yesterday, 2026-11-29.")
@click.option("--until", "until_ns", type=GivenMoment(), help="Before this time.")
@click.option("--actor", "actors", multiple=True, help="Who did it: the id or the name.")
@click.option("--service", "services", multiple=True, help="The `service.name` of its writer.")
@click.option("--key", "identity", metavar="VKEY", type=GivenKey(), help="As for `otel-audit verify`.")
@click.option("--known", metavar="FILE_OR_VKEY", type=GivenKnown(), help="As for `otel-audit verify`.")
@click.option(
    "--rows",
    "rows_max",
    type=GivenCount(1, _ROWS_MAX),
    default=_ROWS,
    show_default=True,
    help="The most rows in a table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.pass_context
def report(
    ctx: click.Context,
    /,
    source: str | None,
    out: Path | None,
    evidence: Path | None,
    event_ids: Sequence[str],
    since_ns: int | None,
    until_ns: int | None,
    actors: Sequence[str],
    services: Sequence[str],
    identity: VerifierKey | None,
    known: KnownNote | VerifierKey | None,
    rows_max: int,
    as_json: bool,
) -> None:
    """Report on a trail in one HTML file: what happened, what covers the time, and what a verification shows.

    SOURCE is what `otel-audit query` takes. The page loads nothing and runs nothing, so it can be mailed, archived and
    printed. It names people: only you may read the file.

    --evidence writes one more file for an auditor: the events byte for byte, the signed ledger, proofs, the programs
    that check them, and a README. `python3 -I FILE.zip --key VKEY` checks it, and needs nothing else.

    Exit codes are those of `otel-audit verify`: 1 for a broken trail, for none at all, and for one that --key or
    --known does not prove.
    """
    if out is None and evidence is None and not as_json:
        raise click.UsageError("expected --out FILE.html, --evidence FILE.zip or --json, got none; give one", ctx)
    if event_ids and evidence is None:
        raise click.UsageError("--prove goes with --evidence FILE.zip, in which the proofs are written", ctx)
    asked = Filters({"actor": actors, "service": services}, since_ns, until_ns)
    pins = Pins(
        identity,
        known if isinstance(known, KnownNote) else None,
        known if isinstance(known, VerifierKey) else None,
    )
    places = places_of(ctx, [source] if source is not None else [])
    looked_for = [*asked.asked(), *(f"prove={event_id}" for event_id in event_ids)]
    try:
        with ExitStack() as stack:
            look = stack.enter_context(
                recorded_access("report", places, looked_for, since_ns=since_ns, until_ns=until_ns)
            )
            store = stack.enter_context(opened_source(ctx, source))
            if evidence is not None and store.kind is Kind.EVENT_LOG:
                raise click.UsageError(
                    f"expected a trail with a chain for --evidence, got a log of events: {escaped(store.where)}; "
                    "leave --evidence out",
                    ctx,
                )
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="otel-audit-evidence-"))) if evidence else None
            made, gathered = _made(store, asked, pins, rows_max, scratch, event_ids)
            look.add(made.activity.totals["events"])
            if out is not None:
                replace_file(out, page_of(made, rows_max=rows_max).encode(), mode=_MODE)
            if evidence is not None and gathered is not None:
                with replacing_file(evidence, mode=_MODE) as descriptor, open(descriptor, "wb", closefd=False) as file:
                    gathered.write(file, made)
            for path in (out, evidence):
                if path is not None:
                    click.echo(f"{escaped(str(path))} written; {made.conclusion}", err=True)
            if as_json:
                click.echo(shown_json(made.as_json()))
    except (NothingStored, QueryUnanswered, AccessUnrecorded) as error:
        raise click.UsageError(escaped(str(error)), ctx) from error
    except (StoreUnreadable, ProofUnavailable) as error:
        raise click.ClickException(escaped(str(error))) from error
    sys.exit(made.exit_code)


def _made(
    store: Store, asked: Filters, pins: Pins, rows_max: int, scratch: Path | None, event_ids: Sequence[str]
) -> tuple[TrailReport, Evidence | None]:
    """Return the report, and the evidence for it if there is a scratch directory to gather it in."""
    made_ns = time.time_ns()
    evidence = None
    with ExitStack() as stack:
        with progress_bar("reading", lambda: None) as passed:
            out = scratch / EVENTS_PARQUET if scratch is not None else None
            database = stack.enter_context(TrailDatabase([store], out=out, passed=passed))
            activity = activity_in(database, asked, rows_max=rows_max)
        if scratch is not None:
            evidence = Evidence(store, database, asked, scratch)
            with progress_bar("gathering evidence", lambda: None) as passed:
                evidence.gather(event_ids, passed)
        gathered = database.gathered
    with progress_bar(
        "verifying", lambda: bytes_of(Path(store.where)) if store.kind is Kind.JOURNAL else None
    ) as passed:
        verification = _verified(store, pins, passed)
    conclusion = (
        verdict_words(verification).plain
        if verification is not None
        else f"NOT VERIFIED: {escaped(store.where)} is a log of events, which has no chain that could be verified"
    )
    return TrailReport(store.where, made_ns, asked, activity, gathered, conclusion, verification), evidence


def _verified(store: Store, pins: Pins, passed: Callable[[int], None]) -> Report | None:
    match store.kind:
        case Kind.EVENT_LOG:
            return None
        case Kind.JOURNAL:
            try:
                return verify_directory(Path(store.where), pins, passed=passed)
            except OSError as error:
                raise unreadable(Path(store.where), error) from error
        case _:
            return verify_store(store, pins, passed=passed)
