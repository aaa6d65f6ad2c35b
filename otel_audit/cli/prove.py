"""`otel-audit prove`: write the proof of one event, for somebody who sees no other."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from otel_audit.cli.command import FINDING
from otel_audit.cli.options import GivenPath, recorded_access, unreadable
from otel_audit.cli.source import opened_source, places_of, source_errors
from otel_audit.errors import ProofUnavailable
from otel_audit.notices import escaped, shown_json
from otel_audit.stores.store import Kind, Store
from otel_audit.verification.proving import ProofMade
from otel_audit.verification.proving import prove as prove_line
from otel_audit.verification.trail_lines import lines_in

__all__ = ["prove"]


@click.command()
@click.argument("event_id")
@click.argument("source", metavar="[SOURCE]", required=False, envvar="OTEL_AUDIT_DIR")
@click.option(
    "--out", metavar="FILE", type=GivenPath(), help="Where to write it, such as event.tlog-proof; without, to stdout."
)
@click.option("--json", "as_json", is_flag=True, help="Say what was proven as one JSON object, with the proof in it.")
@click.pass_context
def prove(ctx: click.Context, event_id: str, source: str | None, out: Path | None, as_json: bool) -> None:
    """Write a proof that the event EVENT_ID is in the trail, byte for byte as it was written.

    SOURCE is the directory of a journal, the archive of a collector, a packed trail, or the URL of a log store:
    loki+https://HOST, victorialogs+https://HOST. Without SOURCE it is the journal of the settings.

    The proof holds that event and no other, and can be checked on any machine: by `otel-audit verify --proof`, or by
    one of the programs in verifiers/. Exit code 1 if the event cannot be proven yet; the message says when it can.
    """
    places = places_of(ctx, [source] if source is not None else [])
    with source_errors(ctx):
        try:
            with (
                recorded_access("prove", places, [f"event_id={event_id}"]) as look,
                opened_source(ctx, source) as store,
            ):
                made = _made(ctx, store, event_id)
                look.add(1)
                if out is not None:
                    out.write_bytes(bytes(made.proof))
                if as_json:
                    click.echo(shown_json(_as_json(made)))
                elif out is None:
                    sys.stdout.buffer.write(bytes(made.proof))
                    sys.stdout.buffer.flush()
        except ProofUnavailable as error:
            if as_json:
                click.echo(shown_json({"message": str(error)}))
            else:
                click.echo(f"otel-audit prove: {escaped(str(error))}", err=True)
            sys.exit(FINDING)
    if not as_json:
        _say_who_signed(made)


def _as_json(made: ProofMade) -> Mapping[str, Any]:
    shown = made.proof.unsigned()
    return {
        "stream_id": shown.stream_id,
        "seq": shown.seq,
        "origin": shown.origin,
        "signers": list(map(str, made.signers)),
        "proof": bytes(made.proof).decode(),
    }


def _made(ctx: click.Context, store: Store, event_id: str) -> ProofMade:
    if store.kind is Kind.EVENT_LOG:
        raise click.UsageError(
            f"expected a trail with a chain, got a log of events, of which nothing can be proven: "
            f"{escaped(store.where)}; give the journal or the archive that it was made from",
            ctx,
        )
    try:
        places = lines_in(store, for_one=True).places(event_id)
    except OSError as error:
        raise unreadable(Path(store.where), error) from error
    if not places:
        raise ProofUnavailable(
            f"expected an event with the id {event_id!r} in {store.where}, got none; it may be elsewhere, or removed "
            "by retention"
        )
    made = prove_line(places[0])
    for each in places[1:]:
        also = f"line {each.line.seq} of the stream {each.stream_id}"
        click.echo(f"otel-audit prove: {also} has the same event id, and is not in this proof", err=True)
    return made


def _say_who_signed(made: ProofMade) -> None:
    shown = made.proof.unsigned()
    click.echo(f"proves line {shown.seq} of the stream {shown.stream_id}", err=True)
    known = {(each.name, each.key_id) for each in made.signers}
    unnamed = [each for each in made.proof.note.signatures if (each.name, each.key_id) not in known]
    keys = [*map(str, made.signers), *(f"{each.name}+{each.key_id.hex()}" for each in unnamed)]
    click.echo(
        "Whoever checks the proof needs one of these keys, and must not get it together with the proof:", err=True
    )
    for each in keys:
        click.echo(f"  {escaped(each)}", err=True)
    if unnamed:
        click.echo(
            "If only the id of a key is shown, the ledger here does not have the key: it belongs to another identity, "
            "or the lines that announced it are missing",
            err=True,
        )
