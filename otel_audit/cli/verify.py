"""`otel-audit verify`: is the trail whole, what shows it, and what nothing shows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource
from rich.console import Console
from rich.text import Text

from otel_audit.cli.command import FINDING
from otel_audit.cli.options import (
    GivenAge,
    GivenMoment,
    GivenPath,
    ParamType,
    existing_directory,
    plain_console,
    say_if_empty,
    unreadable,
)
from otel_audit.cli.source import progress_bar, source_errors
from otel_audit.errors import AuditError, NoteMalformed, ProofInvalid
from otel_audit.moments import utc_text
from otel_audit.notices import escaped, escaped_json, shown_json
from otel_audit.signing.keys import VerifierKey
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.stores.location import NothingStored, is_url, kind_of, open_store
from otel_audit.stores.store import Kind
from otel_audit.verification.archive import SETTLE_S, verify_store
from otel_audit.verification.directory import bytes_of
from otel_audit.verification.findings import Class, Finding, LedgerReport, Report, StreamReport, Verdict
from otel_audit.verification.pins import KnownNote, Pins
from otel_audit.verification.proof import MOST_BYTES, EventProof, Proven
from otel_audit.verification.verify import verify_directory

__all__ = ["GivenKey", "GivenKnown", "print_report", "verdict_words", "verify"]

_SHOWN: Final = 20  # of streams and of each class; `--json` has all
_NOTE_MAX_BYTES: Final = 1 << 20


class GivenKey(ParamType[VerifierKey]):
    """A public key in the form that `otel-audit vkey` prints."""

    name = "vkey"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> VerifierKey:
        """See `click.ParamType`."""
        try:
            return VerifierKey.parse(str(value))
        except NoteMalformed as error:
            self.fail(f"{escaped(str(error))}; give what `otel-audit vkey FILE` prints", param, ctx)


class GivenKnown(ParamType["KnownNote | VerifierKey"]):
    """An earlier note in a file, or an earlier key of the ledger, in a file or as an argument."""

    name = "file or vkey"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> KnownNote | VerifierKey:
        """See `click.ParamType`."""
        given = str(value)
        remedy = "give a note or a key of the ledger, as `otel-audit verify` prints it"
        try:
            if not os.path.isfile(given):  # `Path.is_file` raises for a name that is too long, such as a note's text
                return VerifierKey.parse(given)
        except NoteMalformed as error:
            self.fail(escaped(f"expected a file with a note, or a vkey: {error}; {remedy}"), param, ctx)
        try:
            with open(given, "rb") as file:
                content = file.read(_NOTE_MAX_BYTES)
            if b"\n\n" not in content:
                return VerifierKey.parse(content.decode("utf-8", "replace").strip())
            note = Note.parse(content)
            return KnownNote(note, Checkpoint.parse(note.text))
        except (NoteMalformed, OSError, ValueError) as error:
            # What is in the file is not shown: it may be the private key, given by mistake.
            got = error.strerror if isinstance(error, OSError) else "something else"
            self.fail(escaped(f"expected a note or a vkey in {given}, got {got}; {remedy}"), param, ctx)


class _GivenTrail(GivenPath):
    """The place of a trail: a path, or the URL of a log store, which is not changed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        return value if isinstance(value, str) and is_url(value) else super().convert(value, param, ctx)


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, envvar="OTEL_AUDIT_DIR", type=_GivenTrail())
@click.option(
    "--archive",
    metavar="PATH",
    type=GivenPath(exists=True),
    help="A collector's archive, to compare with the journal in DIR, or to check alone without DIR.",
)
@click.option("--loki", metavar="URL", help="The same for a Loki: https://HOST, with options of docs/operations.md.")
@click.option("--victorialogs", metavar="URL", help="The same for a VictoriaLogs.")
@click.option(
    "--key", "identity", metavar="VKEY", type=GivenKey(), help="The public key that must have signed the ledger."
)
@click.option(
    "--known", metavar="FILE_OR_VKEY", type=GivenKnown(), help="A note or a key of this ledger that was kept elsewhere."
)
@click.option(
    "--anchored-within",
    "anchored_within_s",
    metavar="AGE",
    type=GivenAge(),
    help="The highest age of the newest note that --key, --known or a store vouches for: 24h, 7d.",
)
@click.option(
    "--from",
    "from_ns",
    metavar="TIME",
    type=GivenMoment(),
    help="Check from this time on: 2d, yesterday, 2026-11-29. A store beside DIR may lack older events.",
)
@click.option(
    "--settle",
    "settle_s",
    metavar="AGE",
    type=GivenAge(),
    default=SETTLE_S,
    show_default="1h",
    help="How long a line may take to reach the archive or store.",
)
@click.option(
    "--proof", metavar="FILE", type=GivenPath(), help="Check a proof that `otel-audit prove` wrote, instead of a trail."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object; docs/schema.md has its schema.")
@click.pass_context
def verify(
    ctx: click.Context,
    directory: Path | str | None,
    archive: Path | None,
    loki: str | None,
    victorialogs: str | None,
    identity: VerifierKey | None,
    known: KnownNote | VerifierKey | None,
    anchored_within_s: float | None,
    from_ns: int | None,
    settle_s: float,
    proof: Path | None,
    as_json: bool,
) -> None:
    """Check that a trail is whole, and say what is proven and what is not.

    The verdict is one of four. BROKEN: something was changed, removed, inserted or cut, and the report names stream
    and line. PROVEN: nothing was, up to the last signed line, and what you gave from outside (--key, --known, or a
    store beside DIR) vouches for it. CONSISTENT: no contradiction was found, but nothing from outside vouches for the
    trail. EMPTY: there is no trail here.

    Exit code 1 if the trail is broken, if there is none, or if it is not proven although you gave a key, a note or a
    store.
    """
    pins = Pins(
        identity,
        known if isinstance(known, KnownNote) else None,
        known if isinstance(known, VerifierKey) else None,
    )
    if proof is not None:
        _verify_proof(ctx, proof, pins, as_json=as_json)
        return
    is_given = ctx.get_parameter_source("directory") is click.core.ParameterSource.COMMANDLINE
    second = _second_side(ctx, archive, loki, victorialogs)
    where = second if second is not None and not is_given else None
    if anchored_within_s is not None and not pins.words() and (second is None or where is second):
        raise click.UsageError(
            "--anchored-within goes with --key or --known, or with a store beside DIR: nothing else vouches for a note",
            ctx,
        )
    where = where or _trail(ctx, directory)
    if second is not None and is_given and second == where:
        raise click.UsageError(
            f"expected two sides to compare, got {escaped(str(where))} twice; give the copy that lies "
            "elsewhere, or one of the two",
            ctx,
        )
    try:
        with source_errors(ctx), ExitStack() as stack:
            passed = stack.enter_context(_bar(where))
            if isinstance(where, Path) and kind_of_trail(where) is Kind.JOURNAL:
                say_if_empty(where)
                beside = stack.enter_context(open_store(second)) if second is not None and second != where else None
                report = verify_directory(
                    where,
                    pins,
                    anchored_within_s=anchored_within_s,
                    from_ns=from_ns,
                    beside=beside,
                    settle_s=settle_s,
                    passed=passed,
                )
            elif second is not None and second != where:
                raise click.UsageError(
                    f"expected the directory of a journal to compare with {escaped(str(second))}, got "
                    f"{escaped(str(where))}; give DIR, or only one of the two",
                    ctx,
                )
            elif from_ns is not None:
                raise click.UsageError(
                    "--from goes with the directory of a journal, whose ledger says where to begin; for a log store, "
                    "put start=TIME into its URL",
                    ctx,
                )
            else:
                store = stack.enter_context(open_store(where))
                report = verify_store(
                    store, pins, settle_s=settle_s, anchored_within_s=anchored_within_s, passed=passed
                )
    except OSError as error:
        raise unreadable(Path(where), error) from error
    if as_json:
        click.echo(shown_json(report.as_json()))
    else:
        print_report(report)
    sys.exit(report.exit_code)


def _trail(ctx: click.Context, given: Path | str | None) -> Path | str:
    if isinstance(given, str) or (given is not None and given.is_file()):
        return given
    return existing_directory(ctx, given)


def _second_side(
    ctx: click.Context, archive: Path | None, loki: str | None, victorialogs: str | None
) -> Path | str | None:
    """Return what the journal is held against, or what is verified alone: the path of an archive, or a URL."""
    stores = {"loki": loki, "victorialogs": victorialogs}
    urls = [url if is_url(url) else f"{kind}+{url}" for kind, url in stores.items() if url is not None]
    sides: list[Path | str] = [*([archive] if archive is not None else []), *urls]
    if len(sides) > 1:
        raise click.UsageError(
            "expected one of --archive, --loki and --victorialogs, got several; run it once for each", ctx
        )
    return sides[0] if sides else None


def kind_of_trail(path: Path) -> Kind:
    """Return the kind of trail at a path.

    Raises:
        NothingStored: nothing at the path can be verified.
        OSError: the path cannot be read.
    """
    kind = kind_of(path)
    if kind is Kind.EVENT_LOG:
        raise NothingStored(
            f"{path}: expected the directory of a journal, or an archive, got a log of events, which has no chain; "
            "give what it was made from"
        )
    return kind


def _bar(where: Path | str) -> AbstractContextManager[Callable[[int], None]]:
    return progress_bar("verifying", lambda: bytes_of(where) if isinstance(where, Path) else None)


def print_report(report: Report) -> None:
    """Print to stdout what is shown of a trail: the verdict, each stream, and what was found."""
    console = plain_console()
    console.print(verdict_words(report))
    _print_streams(console, report)
    for weight, title, style in (
        (Class.FINDING, "What is wrong", "bold red"),
        (Class.UNPROVEN, "What was not proven, and why", "yellow"),
        (Class.NOTICE, "Worth knowing", ""),
    ):
        _print_facts(console, [each for each in report.all_findings if each.weight is weight], title, style)
    for ledger in report.ledgers[:1]:
        _print_ledger(console, ledger, report)


def verdict_words(report: Report) -> Text:
    """Return the verdict in one sentence."""
    where = escaped(report.source)
    signed, vouched = report.signed_lines, report.vouched_lines
    unproven = sum(each.weight is Class.UNPROVEN for each in report.all_findings)
    match report.verdict:
        case Verdict.BROKEN:
            wrong = [each for each in report.all_findings if each.weight is Class.FINDING]
            more = f" ({len(wrong)} findings in all)" if len(wrong) > 1 else ""
            return Text(f"BROKEN: the trail in {where} is not as it was written: {_placed(wrong[0])}{more}", "bold red")
        case Verdict.PROVEN:
            by, later = " and ".join(report.pins), signed - vouched
            which = f"{vouched} of the {signed}" if later else f"the {signed}"
            rest = f"; the other {later} were signed later, and are not vouched for" if later else ""
            return Text(
                f"PROVEN: {which} signed lines of the trail in {where} are as they were written, by {by}{rest}; none "
                "is changed, missing or out of place",
                "bold green",
            )
        case Verdict.EMPTY:
            return Text(
                f"EMPTY: expected a trail in {where}, got no line and no signed ledger: nothing was recorded there "
                "yet, or all of it was removed; give the place where a service records, or look for it in a backup",
                "bold yellow",
            )
    if report.pins:
        return Text(
            f"CONSISTENT, not proven: no contradiction was found in the trail in {where}, but {_facts(unproven)} "
            f"not proven by {' and '.join(report.pins)}; {vouched} of the {signed} signed lines are vouched for",
            "bold yellow",
        )
    said = f"; {_facts(unproven)} not proven" if unproven else ""
    return Text(
        f"CONSISTENT: no contradiction was found in the trail in {where}{said}. Nothing from outside vouches for it: "
        "give --key or --known",
        "bold",
    )


def _facts(count: int) -> str:
    return "1 fact below is" if count == 1 else f"{count} facts below are"


def _print_streams(console: Console, report: Report) -> None:
    wrong = {each.stream_id for each in report.all_findings if each.weight is Class.FINDING}
    shown = sorted(report.streams, key=lambda stream: (stream.stream_id not in wrong, stream.state == "removed"))
    for stream in shown[:_SHOWN]:
        words = _stream_words(stream, is_wrong=stream.stream_id in wrong, has_pins=bool(report.pins))
        console.print(words)
    if len(shown) > _SHOWN:
        console.print(Text(f"and {len(shown) - _SHOWN} more streams: see --json", "dim"))


def _stream_words(stream: StreamReport, *, is_wrong: bool, has_pins: bool) -> Text:
    words = Text(f"{stream.stream_id}  {escaped(stream.service) or '-'}  {stream.state}", "red" if is_wrong else "")
    if stream.lines:
        words.append(f"  lines {stream.first_seq} to {stream.last_seq}, chained to {stream.chain_to}")
        words.append(f", signed to {stream.signed_to}" if stream.signed_to else ", nothing signed")
        if stream.anchored_to:
            words.append(f", vouched for to {stream.anchored_to}")
        elif has_pins:
            words.append(", not vouched for")
    return words


def _print_facts(console: Console, facts: Sequence[Finding], title: str, style: str) -> None:
    if not facts:
        return
    console.print(Text(f"\n{title}:", style or "bold"))
    for each in facts[:_SHOWN]:
        console.print(Text(f"  {_placed(each)}", style))
    if len(facts) > _SHOWN:
        console.print(Text(f"  and {len(facts) - _SHOWN} more: see --json", "dim"))


def _placed(finding: Finding) -> str:
    return escaped(f"{finding.stream_id}: {finding.message}" if finding.stream_id else finding.message)


def _print_ledger(console: Console, ledger: LedgerReport, report: Report) -> None:
    if not ledger.notes:
        return
    time = utc_text(ledger.note_time_ns)
    console.print(
        Text(
            f"\nledger {escaped(ledger.origin)}: {ledger.size} lines under its last note, of {time}; key epochs: "
            f"{ledger.epochs}"
        )
    )
    if report.verdict is not Verdict.BROKEN:
        console.print(Text("keep this elsewhere, for the next time (--known):", "dim"))
        console.print(Text(escaped(ledger.vkey), "dim"))


_WITH_PROOF: Final = {"proof", "identity", "known", "as_json"}  # of the parameters of `verify`


def _verify_proof(ctx: click.Context, file: Path, pins: Pins, *, as_json: bool) -> None:
    """Print what the proof in a file shows to a holder of these pins, and exit: 0 if it shows an event, else 1."""
    if not pins.words():
        raise click.UsageError("--proof goes with --key or --known: nothing else vouches for a proof", ctx)
    for name, source in ((name, ctx.get_parameter_source(name)) for name in ctx.params):
        if source is ParameterSource.COMMANDLINE and name not in _WITH_PROOF:
            raise click.UsageError("--proof is checked with --key or --known alone: leave out the rest", ctx)
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise click.UsageError(
            f"expected a file that `otel-audit prove` wrote, got {escaped(str(file))}, which is not a file; give its "
            "path to --proof",
            ctx,
        )
    with open(file, "rb") as opened:
        raw = opened.read(MOST_BYTES + 1)
    try:
        shown = _proven(EventProof.parse(raw), pins)
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


def _proven(proof: EventProof, pins: Pins) -> Proven:
    """Return what the proof shows: a pinned key signed its note, or it is the note that was kept elsewhere.

    Raises:
        ProofInvalid: it shows nothing.
        NoteMalformed: its note is not a checkpoint.
        SignatureInvalid: no pinned key signed its note.
    """
    known = pins.known_note
    if known is not None and known.note.text == proof.note.text:
        return proof.unsigned()
    keys = [key for key in (pins.identity, pins.known_key) if key is not None]
    if not keys:
        raise ProofInvalid("its note is not that of --known, which does not say what stood there before; give --key")
    return proof.check(keys)
