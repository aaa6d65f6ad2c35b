"""`otel-audit prove`: write the proof of one event, for somebody who sees no other."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

from otel_audit.access import AccessUnrecorded, recorded_access
from otel_audit.cli.options import GivenPath, directory_argument, unreadable
from otel_audit.errors import ProofUnavailable
from otel_audit.notices import escaped
from otel_audit.verification.proving import ProofMade, places_of
from otel_audit.verification.proving import prove as prove_line

__all__ = ["prove"]

_FINDING: Final = 1


@click.command()
@click.argument("event_id")
@directory_argument
@click.option(
    "--out", metavar="FILE", type=GivenPath(), help="Where to write it, such as event.tlog-proof; without, to stdout."
)
def prove(event_id: str, directory: Path, out: Path | None) -> None:
    """Write the proof that the event EVENT_ID stands in the trail as it was written.

    The proof holds that event and no other, and is checked without this machine: by `otel-audit verify --proof`, or by
    one of the programs in verifiers/. Exit code 1 when there is none yet; it says when there will be one.
    """
    try:
        with recorded_access("prove", [os.path.abspath(directory)], [f"event_id={event_id}"]) as look:
            made = _made(directory, event_id)
            look.add(1)
            if out is None:
                sys.stdout.buffer.write(bytes(made.proof))
                sys.stdout.buffer.flush()
            else:
                out.write_bytes(bytes(made.proof))
    except ProofUnavailable as error:
        click.echo(f"otel-audit prove: {escaped(str(error))}", err=True)
        sys.exit(_FINDING)
    except AccessUnrecorded as error:
        raise click.UsageError(escaped(str(error))) from error
    _say_who_signed(made)


def _made(directory: Path, event_id: str) -> ProofMade:
    try:
        places = places_of(directory, event_id)
    except OSError as error:
        raise unreadable(directory, error) from error
    if not places:
        raise ProofUnavailable(
            f"expected an event of the id {event_id!r} in {directory}, got none; it may be in another directory, or "
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
    click.echo("Whoever checks it needs one of these keys, and not by the way on which the proof comes:", err=True)
    for each in made.signers:
        click.echo(f"  {escaped(str(each))}", err=True)
