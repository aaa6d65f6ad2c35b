"""How far a verification proves one line: the strongest statement that holds, or that the line is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from otel_audit.verification.findings import Class, Finding, Report, StreamReport

__all__ = ["WORDS", "Standing", "Standings"]


class Standing(StrEnum):
    """How far a line is proven, as the page shows it."""

    BROKEN = "broken"
    PROVEN = "proven"
    SIGNED = "signed"
    CHAINED = "chained"
    UNPROVEN = "unproven"
    UNCHECKED = "unchecked"
    UNCHAINED = "unchained"


WORDS: Final[Mapping[Standing, str]] = {
    Standing.BROKEN: "The verification found something wrong here.",
    Standing.PROVEN: "A signed note covers this line, and a key or note that you brought vouches for it.",
    Standing.SIGNED: "A signed note of the ledger covers this line. No key or note that you brought vouches for it.",
    Standing.CHAINED: "The chain of hashes is whole up to this line. No signed note covers it yet.",
    Standing.UNPROVEN: "Nothing shows that this line is as it was written.",
    Standing.UNCHECKED: "This line has not been verified yet.",
    Standing.UNCHAINED: "A log of events has no chain, so nothing can be shown about its lines.",
}
"""Each standing in a sentence."""


class Standings:
    """The standing of every line after one verification. Without a report, no line has been verified."""

    def __init__(self, report: Report | None) -> None:
        self._streams: Mapping[str, StreamReport] = {}
        self._broken: dict[str, list[Finding]] = {}
        if report is not None:
            self._streams = {stream.stream_id: stream for stream in report.streams}
            for each in report.all_findings:
                if each.weight is Class.FINDING:
                    self._broken.setdefault(each.stream_id, []).append(each)

    def of(self, stream_id: str, seq: int) -> Standing:
        """Return the standing of a line."""
        if self.findings(stream_id, seq):
            return Standing.BROKEN
        stream = self._streams.get(stream_id)
        if stream is None or seq > stream.last_seq:
            return Standing.UNCHECKED
        if seq <= stream.anchored_to:
            return Standing.PROVEN
        if seq <= stream.signed_to:
            return Standing.SIGNED
        return Standing.CHAINED if seq <= stream.chain_to else Standing.UNPROVEN

    def findings(self, stream_id: str, seq: int) -> Sequence[Finding]:
        """Return the findings about a line, or about its whole stream."""
        return [each for each in self._broken.get(stream_id, ()) if _is_about(each, seq)]

    def stream(self, stream_id: str) -> StreamReport | None:
        """Return the report on a stream."""
        return self._streams.get(stream_id)


def _is_about(finding: Finding, seq: int) -> bool:
    if finding.seq is None:
        return True
    return finding.seq <= seq <= (finding.last_seq if finding.last_seq is not None else finding.seq)
