"""`otel-audit verify --proof FILE`: check the proof of one event, with no trail at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from otel_audit.cli.command import FINDING
from otel_audit.errors import AuditError, ProofInvalid
from otel_audit.notices import escaped, escaped_json, shown_json
from otel_audit.verification.pins import Pins
from otel_audit.verification.proof import MOST_BYTES, EventProof, Proven

__all__ = ["verify_proof"]

_TAKEN: Final = {"proof", "identity", "known", "as_json"}  # of the parameters of `verify`


def verify_proof(ctx: click.Context, file: Path, pins: Pins, *, as_json: bool) -> None:
    """Print what the proof in a file shows to whoever brought these pins, and exit: 0 if it shows an event, else 1."""
    if not pins.words():
        raise click.UsageError("--proof goes with --key or --known: nothing else vouches for a proof", ctx)
    for name, source in ((name, ctx.get_parameter_source(name)) for name in ctx.params):
        if source is ParameterSource.COMMANDLINE and name not in _TAKEN:
            raise click.UsageError("--proof is checked with --key or --known alone: leave out the rest", ctx)
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise click.UsageError(
            f"expected a file that `otel-audit prove` wrote, got {escaped(str(file))}, which is no file; give its path "
            "to --proof",
            ctx,
        )
    with open(file, "rb") as opened:
        raw = opened.read(MOST_BYTES + 1)
    try:
        shown = _shown(EventProof.parse(raw), pins)
    except AuditError as error:
        if as_json:
            click.echo(shown_json({"verdict": "broken", "message": str(error)}))
        else:
            click.echo(f"BROKEN: {escaped(str(file))} proves nothing: {escaped(str(error))}")
        sys.exit(FINDING)
    if as_json:
        event = shown.event.decode()
        place = {"stream_id": shown.stream_id, "seq": shown.seq, "origin": shown.origin}
        click.echo(shown_json({"verdict": "proven", **place, "signers": list(map(str, shown.signers)), "event": event}))
    else:
        by = " and ".join(pins.words())
        click.echo(
            f"PROVEN: line {shown.seq} of the stream {shown.stream_id} stands in the log {escaped(shown.origin)} as it "
            f"was written, by {by}:"
        )
        click.echo(escaped_json(shown.event.decode()))


def _shown(proof: EventProof, pins: Pins) -> Proven:
    """Return what the proof shows: a pinned key signed its note, or it is the note that was kept elsewhere.

    Raises:
        ProofInvalid: it shows nothing.
        NoteMalformed: its note is no checkpoint.
        SignatureInvalid: no pinned key signed its note.
    """
    known = pins.known_note
    if known is not None and known.note.text == proof.note.text:
        return proof.unsigned()
    keys = [key for key in (pins.identity, pins.known_key) if key is not None]
    if not keys:
        raise ProofInvalid("its note is not that of --known, which does not say what stood there before; give --key")
    return proof.check(keys)
