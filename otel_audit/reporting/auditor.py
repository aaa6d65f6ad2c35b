"""The README in an evidence file, in plain English for a reader who knows neither the product nor its formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from textwrap import fill
from typing import Any, Final

from otel_audit.notices import escaped

__all__ = ["readme"]

_WIDTH: Final = 96
_SHOWN: Final = 50  # proofs, of which `contents.json` has all
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ASKED: Final = {"actor": "Person or program", "service": "Service"}

_TEXT: Final = """\
EVIDENCE FROM AN AUDIT TRAIL

{opening}


WHAT WAS ASKED

{asked}


WHAT IS IN HERE

  events.jsonl       the events, one JSON object a line, byte for byte as the journal has them.
                     Lines that begin with {{"system": come from the journal itself: the header
                     of a file, or a gap that names a known loss.
  events.parquet     the same events as a table, for a spreadsheet or a database. Only the list
                     of files covers it, so rely on events.jsonl where it matters.
  ledger.jsonl       the signed ledger of the trail. It says which streams of events were opened,
                     how far they came, and which hashes stand for them. It holds no events.
  keys.txt           the public keys that the trail itself names.
  notes/             the last signed note of each ledger.
  proofs/            proofs of single lines, each a file that can be checked by itself.
  contents.json      this page for programs: what was asked, which lines are in it, and the proofs.
  verifiers/         the programs that check all this, in Python and in Go, as source code.
  MANIFEST.sha256    the SHA-256 of every file, as `sha256sum -c MANIFEST.sha256` reads it.


HOW TO CHECK IT

You need Python 3.9 or newer, and nothing that would have to be installed.

1. Get a public key of the trail from another source than this file: from the operator in person, from
   a ticket, from an earlier audit. A key looks like

     shop/3f6c...+1a2b3c4d+AbCdEf...

   With only the keys in here, the check shows that the file fits together. It cannot show who
   made it: somebody who forges everything signs with keys of their own.

2. Run the check. It reads the ZIP file, and needs no other file and no network.

     python3 -I EVIDENCE.zip --key KEY

   It ends with PROVEN, or it names each place that does not fit, and its exit code is 1.
   Without --key it ends with CONSISTENT.

3. That program came with the evidence, and a forger could have changed it too. If that matters,
   take verifiers/python/ from a release of the product. Or read the two files, which are written
   for that, and copy them alone into an empty folder: Python would also run compiled files that
   lie beside them. Then run them there:

     python3 -I verify_evidence.py --key KEY EVIDENCE.zip

4. Check one proof alone, with either of two programs that share no code:

     python3 -I verifiers/python/verify_proof.py --key KEY proofs/NAME.tlog-proof
     cd verifiers/go && go build && ./verify-proof --key KEY ../../proofs/NAME.tlog-proof

   Here KEY has to be the one that signed the note in the proof. Any key of keys.txt may be it.


WHAT IS PROVEN, AND BY WHICH KEY

{proven}

{keys}

A signed note stands for all lines of the ledger before it. An entry of the ledger stands for all
lines of a stream up to a number. And each line holds the hash of the line before it. So a line
that is proven proves every line that it is chained to, back to the first hole.

{proofs}


WHAT IS NOT PROVEN

{limits}
"""
_OPENING: Final = (
    "This file holds {events} events that a service recorded about what people and programs did, with what it takes to "
    "check that nobody changed them later. You need not trust whoever gave it to you, apart from a public key, which "
    "you should have from elsewhere. It was made by {made_by} from {source}."
)
_LIMITS: Final = (
    "That an event is true. It is as the service wrote it at that time. A service that was deceived, or that lied, "
    "leaves a sound trail of it.",
    "That everything was recorded. Gaps name the losses that are known. What was never handed to the journal is not in "
    "it.",
    "That no event is missing from a selection. Within a run of lines without a hole nothing is missing. Where lines "
    "between two others are not in here, nothing shows whether they belong to what was asked. Ask for the whole period "
    "of the service then, instead of one person.",
    "Lines behind the last signed entry of the ledger. The check counts and names them.",
    "Who holds the signing keys. Whoever controlled the machine while an event was written could have written another "
    "one.",
)


def readme(contents: Mapping[str, Any]) -> str:
    """Return the text that explains the evidence with these contents."""
    return _TEXT.format(
        opening=_paragraph(
            _OPENING.format(
                events=f"{contents['event_count']:,}",
                made_by=contents["made_by"],
                source=escaped(str(contents["source"])),
            )
        ),
        asked="\n".join(_asked(contents)),
        proven=_paragraph(
            "When this file was made, the whole trail was verified, with this result: "
            + escaped(str(contents["conclusion"]))
        ),
        keys="\n".join(_keys(contents["ledgers"])),
        proofs="\n".join(_proofs(contents)),
        limits="\n".join(_item(each) for each in _limits(contents)),
    )


def _asked(contents: Mapping[str, Any]) -> Sequence[str]:
    since, until = contents["since_ns"], contents["until_ns"]
    asked = [
        f"  From:              {_time(since) if since is not None else 'the first event of the trail'}",
        f"  Before:            {_time(until) if until is not None else 'no limit'}",
    ]
    for name, title in _ASKED.items():
        words = ", ".join(map(escaped, contents["filters"].get(name, ()))) or "all"
        asked.append(f"  {title + ':':<18} {words}")
    return asked


def _keys(ledgers: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    if not ledgers:
        return ["The trail has no signed ledger. So nothing here is proven by a key."]
    said = ["The trail names these keys as its own. One of them, from elsewhere, is what the check needs:"]
    for each in ledgers:
        said += ["", f"  log        {escaped(str(each['origin']))}", f"  last key   {escaped(str(each['key']))}"]
        if each["identity"]:
            said.append(f"  identity   {escaped(str(each['identity']))}")
    return said


def _proofs(contents: Mapping[str, Any]) -> Sequence[str]:
    proofs = contents["proofs"]
    if not proofs:
        return ["There are no proofs of single lines in here."]
    said = ["Proofs of single lines, by event:", ""]
    said += [f"  {escaped(str(each['event_id']))}\n    {each['file']}" for each in proofs[:_SHOWN]]
    if len(proofs) > _SHOWN:
        said.append(f"  and {len(proofs) - _SHOWN:,} more, in contents.json")
    return said


def _limits(contents: Mapping[str, Any]) -> Sequence[str]:
    limits = list(_LIMITS)
    if contents["runs_without_proof"]:
        limits.append(
            f"{contents['runs_without_proof']:,} runs of lines got no proof when this file was made. The check says "
            "whether the ledger proves them by itself."
        )
    if contents["damaged"]:
        limits.append(f"{contents['damaged']:,} pieces of the trail are damaged, and are not in here.")
    return limits


def _paragraph(text: str) -> str:
    return fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _item(text: str) -> str:
    return fill(
        text, _WIDTH, initial_indent="* ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _time(time_ns: int) -> str:
    try:
        moment = _EPOCH + timedelta(microseconds=time_ns // 1000)
    except OverflowError:
        return f"{time_ns} ns since 1970"
    return moment.isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
