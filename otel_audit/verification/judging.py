"""Judgements that are the same for a directory and a store: the ledgers by the pins, and the coverage of a stream."""

from __future__ import annotations

from collections.abc import Sequence

from otel_audit.journal.line import FORMAT_VERSION, Line
from otel_audit.journal.reader import service_in
from otel_audit.verification.anchors import AnchorWalk
from otel_audit.verification.chain import Chain
from otel_audit.verification.claims import StreamClaims
from otel_audit.verification.findings import Findings, Report, StreamReport
from otel_audit.verification.ledger import LedgerCheck
from otel_audit.verification.pins import Pins

__all__ = ["describe", "judge_headers", "judge_ledgers", "unfinished_words"]


def judge_ledgers(
    checks: Sequence[LedgerCheck], pins: Pins, report: Report, findings: Findings, anchored_within_s: float | None
) -> None:
    """Finish the checks of all ledgers, oldest first, and add their findings and those that follow from the pins."""
    for check in checks:
        check.finish()
        findings.found += check.findings.all
        report.ledgers.insert(0, check.report)
    if "--known" in pins.words() and not any(check.is_known for check in checks):
        findings.unproven(
            "known", None, f"what --known gives is of another ledger, and says nothing of {report.source}"
        )
    if not checks:
        weigh = findings.broken if pins.words() else findings.unproven
        weigh("no_ledger", None, f"{report.source} has no signed ledger: its chains show nothing to a stranger")
    if anchored_within_s is not None:
        _judge_age(checks, report, findings, anchored_within_s)


def _judge_age(checks: Sequence[LedgerCheck], report: Report, findings: Findings, anchored_within_s: float) -> None:
    newest = max((check.pins.vouched_ns for check in checks), default=0)
    age_s = (report.time_ns - newest) / 1e9
    if not newest:
        findings.broken("anchor", None, "nothing that you brought along vouches for a note of this ledger")
    elif age_s > anchored_within_s:
        findings.broken(
            "anchor",
            None,
            f"the newest note that your pin vouches for is {age_s:.0f} seconds old, more than {anchored_within_s:.0f}",
        )


def judge_headers(chain: Chain, findings: Findings) -> None:
    """Report what the headers of a stream say that limits its verification."""
    for segment, seq, header in chain.headers:
        if header.get("format") != FORMAT_VERSION:
            number = header.get("number", segment)
            findings.unproven(
                "format",
                seq,
                f"segment {number} has the format {header.get('format')!r}, which this version does not know",
            )
    if chain.is_in_memory:
        findings.unproven("memory", None, "it was written with durability `memory`, which signs nothing")


def unfinished_words(lines: Sequence[Line]) -> str:
    """Return the text of the finding about the last lines of a ledger, which no note covers."""
    return f"ledger lines {lines[0].seq} to {lines[-1].seq} have no note yet, and count for nothing"


def describe(report: StreamReport, chain: Chain, walk: AnchorWalk, claims: StreamClaims | None) -> None:
    """Fill in which lines of a stream are there, and how far they are chained, signed and anchored."""
    report.first_seq, report.last_seq, report.lines = chain.first_seq, chain.seq, chain.lines
    report.chain_to, report.signed_to = chain.chain_to, walk.signed_to
    if claims is not None:
        report.service, report.ended = claims.service, claims.end is not None
        report.anchored_to = min(claims.anchored, report.signed_to)
    if not report.service and chain.headers:
        report.service = service_in(chain.headers[0][2])
