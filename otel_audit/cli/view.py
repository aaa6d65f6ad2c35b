"""`otel-audit view`: look at a trail in a browser, on this machine alone."""

from __future__ import annotations

import os
import signal
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import click

from otel_audit.access import AccessLog
from otel_audit.cli.options import GivenCount, Stop
from otel_audit.cli.source import opened_source, places_of, source_errors
from otel_audit.cli.verify import GivenKey, GivenKnown
from otel_audit.query.unanswered import QueryUnanswered
from otel_audit.signing.keys import VerifierKey
from otel_audit.stores.columns import load_duckdb
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.location import open_store
from otel_audit.stores.store import Kind, Store
from otel_audit.verification.pins import KnownNote, Pins
from otel_audit.viewing.server import PageServer
from otel_audit.viewing.trail import ViewedTrail

__all__ = ["view"]

_SCREENS: Final = ("DISPLAY", "WAYLAND_DISPLAY")


@click.command()
@click.argument("source", required=False)
@click.option("--port", type=GivenCount(0, 65_535), default=0, help="The port.  [default: a free one]")
@click.option("--ipv6", is_flag=True, help="Listen on ::1 instead of 127.0.0.1.")
@click.option("--no-browser", is_flag=True, help="Only print the URL.")
@click.option("--key", "identity", metavar="VKEY", type=GivenKey(), help="As for `otel-audit verify`.")
@click.option("--known", metavar="FILE_OR_VKEY", type=GivenKnown(), help="As for `otel-audit verify`.")
@click.pass_context
def view(
    ctx: click.Context,
    /,
    source: str | None,
    port: int,
    ipv6: bool,
    no_browser: bool,
    identity: VerifierKey | None,
    known: KnownNote | VerifierKey | None,
) -> None:
    """Look at a trail in a browser: what happened, who did it, and whether it is proven.

    SOURCE is as for `otel-audit query`. The page is served on this machine only, and only to those who have its URL. It
    loads nothing from elsewhere and changes nothing. Ctrl-C ends it.
    """
    pins = Pins(
        identity,
        known if isinstance(known, KnownNote) else None,
        known if isinstance(known, VerifierKey) else None,
    )
    places = places_of(ctx, [source] if source is not None else [])
    with source_errors(ctx), AccessLog.from_environment() as access, access.look("view", places) as look:
        load_duckdb(QueryUnanswered, "expected DuckDB, which answers the questions of the page")
        trail = ViewedTrail(_again(ctx, source), pins)
        server = _served(ctx, trail, port, ipv6=ipv6, access=access, places=places)
        with Stop(signal.SIGHUP) as stop, closing(trail), closing(server):
            trail.start()
            server.start()
            click.echo(server.url)
            click.echo("Only this machine can open it, and only with the whole URL. Ctrl-C ends it.", err=True)
            with _handed_over(server.url, wanted=not no_browser):
                stop.wait()
        look.add(server.handed_out)


def _served(
    ctx: click.Context, trail: ViewedTrail, port: int, *, ipv6: bool, access: AccessLog, places: Sequence[str]
) -> PageServer:
    try:
        return PageServer(trail, port=port, ipv6=ipv6, access=access, places=places)
    except OSError as error:
        raise click.UsageError(
            f"expected a free port on this machine, got {port}: {error.strerror or error}; give another --port", ctx
        ) from error


def _again(ctx: click.Context, source: str | None) -> Callable[[], Store]:
    """Return a function that opens the source, once for each thread. It is opened here first, to report its errors."""
    with opened_source(ctx, source) as store:
        where, is_journal = store.where, store.kind is Kind.JOURNAL
    return (lambda: DirectoryStore(Path(where))) if is_journal else (lambda: open_store(source or where))


@contextmanager
def _handed_over(url: str, *, wanted: bool) -> Iterator[None]:
    """Open the page in a browser, if there is a screen.

    The arguments of a process can be read by everybody on the machine. So the browser is given a file that only its
    owner can read, and that leads to the URL with its token.
    """
    if not wanted or not any(os.environ.get(name) for name in _SCREENS):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="otel-audit-view-") as directory:
        path = Path(directory) / "view.html"
        path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={url}">\n')
        path.chmod(0o600)
        if not webbrowser.open(path.as_uri()):
            click.echo("No browser could be started: open the URL yourself.", err=True)
        yield
