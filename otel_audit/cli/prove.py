"""`otel-audit prove`: write the proof of one event, for somebody who sees no other."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from otel_audit.access import AccessUnrecorded, recorded_access
from otel_audit.cli.command import FINDING
from otel_audit.cli.options import GivenPath, directory_argument, unreadable
from otel_audit.errors import ProofUnavailable
from otel_audit.notices import escaped, shown_json
from otel_audit.verification.proving import ProofMade, places_of
from otel_audit.verification.proving import prove as prove_line

__all__ = ["prove"]


@click.command()
@click.argument("event_id")
@directory_argument
@click.option(
    "--out", metavar="FILE", type=GivenPath(), help="Where to write it, such as event.tlog-proof; without, to stdout."
)
@click.option("--json", "as_json", is_flag=True, help="Say what was proven as one JSON object, with the proof in it.")
def prove(event_id: str, directory: Path, out: Path | None, as_json: bool) -> None:
    """Write a proof that the event EVENT_ID is in the trail, byte for byte as it was written.

    The proof holds that event and no other, and can be checked on any machine: by `otel-audit verify --proof`, or by
    one of the programs in verifiers/. Exit code 1 if the event cannot be proven yet; the message says when it can.
    """
    try:
        with recorded_access("prove", [os.path.abspath(directory)], [f"event_id={event_id}"]) as look:
            made = _made(directory, event_id)
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
            sys.exit(FINDING)
        click.echo(f"otel-audit prove: {escaped(str(error))}", err=True)
        sys.exit(FINDING)
    except AccessUnrecorded as error:
        raise click.UsageError(escaped(str(error))) from error
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


def _made(directory: Path, event_id: str) -> ProofMade:
    try:
        places = places_of(directory, event_id)
    except OSError as error:
        raise unreadable(directory, error) from error
    if not places:
        raise ProofUnavailable(
            f"expected an event with the id {event_id!r} in {directory}, got none; it may be in another directory, or "
            "removed by retention"
        )
    made = prove_line(places[0])
    for each in places[1:]:
        also = f"line {each.line.seq} of the stream {each.files.stream_id}"
        click.echo(f"otel-audit prove: {also} has the same event id, and is not in this proof", err=True)
    return made


def _say_who_signed(made: ProofMade) -> None:
    shown = made.proof.unsigned()
    click.echo(f"proves line {shown.seq} of the stream {shown.stream_id}", err=True)
    click.echo(
        "Whoever checks the proof needs one of these keys, and must not get it together with the proof:", err=True
    )
    for each in made.signers:
        click.echo(f"  {escaped(str(each))}", err=True)
