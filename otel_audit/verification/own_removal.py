"""Compare a ledger's entry about its own removed lines with the lines that are missing.

Retention removes the oldest segments of a ledger once nothing depends on them. The ledger's own `retain` entry names
the last removed line, and repeats the content of the first entry. Any other missing line was cut off.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from otel_audit.errors import NoteMalformed
from otel_audit.journal.ledger.entries import Header
from otel_audit.verification.anchors import Bridge
from otel_audit.verification.claims import Claims, bridge_of
from otel_audit.verification.findings import Findings

__all__ = ["OwnRemoval"]


class OwnRemoval:
    """The beginning of one ledger. `follows` is the header after missing lines."""

    def __init__(self, ledger_id: str, claims: Claims, findings: Findings) -> None:
        self.follows: Header | None = None
        self._ledger_id = ledger_id
        self._claims = claims
        self._findings = findings
        self._removed: Bridge | None = None

    def take(self, content: Mapping[str, Any], place: int) -> Mapping[str, Any] | None:
        """Take a `retain` entry of the ledger. Return its copy of the first entry if that line is missing."""
        try:
            removed = bridge_of(content)
        except (KeyError, TypeError, ValueError, NoteMalformed) as error:
            what = f"ledger line {place}: expected a 'retain' entry, got another one: {error}"
            self._findings.broken("entry", place, what)
            return None
        if removed.first_seq != 1 or removed.last_seq >= place:
            self._findings.broken("entry", place, f"ledger line {place} removes ledger lines up to {removed.last_seq}")
            return None
        self._removed = self._claims.removed[self._ledger_id] = removed
        self._findings.notice(
            "ledger_retained",
            1,
            f"ledger lines 1 to {removed.last_seq} were removed by retention (ledger line {place})",
            removed.last_seq,
        )
        begin = content.get("begin")
        return begin if self.follows is not None and isinstance(begin, dict) else None

    def judge(self) -> None:
        """Report missing lines that the entry does not cover."""
        if self.follows is None:
            return
        last, removed = self.follows.line.seq - 1, self._removed
        first = 1 if removed is None else removed.last_seq + 1
        if first <= last:
            what = f"ledger lines {first} to {last} are not there, and the ledger does not say that they were removed"
            self._findings.broken("ledger_cut", first, what, last)
        elif removed is not None and removed.last_seq == last:
            nodes = [base64.b64encode(node).decode() for node in removed.nodes or ()]
            if (removed.hash, nodes) != (self.follows.line.tail.prev_hash, self.follows.content.get("edge")):
                what = f"ledger line {last} is not the one that the ledger says was removed"
                self._findings.broken("ledger_cut", last, what)
