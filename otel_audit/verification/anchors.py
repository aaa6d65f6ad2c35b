"""Compare the lines of a stream with their signed hashes and roots.

An `Anchor` gives hash and root of a stream at one size, from a head, an end or an adoption in the ledger. A `Bridge`
replaces lines that retention removed, with what chain and tree need in order to continue after them. `AnchorWalk` takes
the digests of a stream in order, grows the tree, and compares at each anchor.

Either comparison alone would be enough: the hash of a line commits to all lines before it through the chain, and the
root does so through the tree. With both, a verifier can say more. If one line was changed, the next one still names its
old hash; if the tree with that hash has the signed root, no other line was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from otel_audit.signing.tree import Edge, leaf_hash
from otel_audit.verification.findings import Findings

__all__ = ["Anchor", "AnchorWalk", "Bridge", "join", "rising"]

_NEVER: Final = 2**63


@dataclass(frozen=True, slots=True)
class Anchor:
    """The signed state of a stream at one size. For messages, `kind` and `place` name the ledger's entry."""

    size: int
    hash: str
    root: bytes | None = None
    nodes: tuple[bytes, ...] | None = None
    kind: str = "head"
    place: int = 0


@dataclass(frozen=True, slots=True)
class Bridge:
    """Removed lines, from `first_seq` to `last_seq`, with the hash and edge known at both ends."""

    first_seq: int
    last_seq: int
    prev_hash: str | None = None
    hash: str | None = None
    nodes: tuple[bytes, ...] | None = None

    def covers(self, first_seq: int, last_seq: int) -> bool:
        """Return True if all of these lines are among the removed ones."""
        return self.first_seq <= first_seq and last_seq <= self.last_seq


def join(bridges: list[Bridge], bridge: Bridge) -> None:
    """Add a bridge, and join it with adjacent ones. Segments may be removed in any order."""
    for each in list(bridges):
        if each.last_seq + 1 == bridge.first_seq and each.hash == bridge.prev_hash:
            bridge = Bridge(each.first_seq, bridge.last_seq, each.prev_hash, bridge.hash, bridge.nodes)
        elif bridge.last_seq + 1 == each.first_seq and bridge.hash == each.prev_hash:
            bridge = Bridge(bridge.first_seq, each.last_seq, bridge.prev_hash, each.hash, each.nodes)
        else:
            continue
        bridges.remove(each)
    bridges.append(bridge)


class AnchorWalk:
    """Takes the digest of each line in order, and compares it at the anchors. Memory use is constant.

    `signed_to` is the size of the last anchor that agreed. With `tree`, the tree is grown even if no anchor has a root.
    """

    __slots__ = (
        "_anchors",
        "_at",
        "_bridges",
        "_edge",
        "_findings",
        "_good_to",
        "_is_different",
        "_wants_tree",
        "signed_to",
        "stop",
    )

    def __init__(
        self, anchors: Sequence[Anchor], bridges: Sequence[Bridge], findings: Findings, *, tree: bool = False
    ) -> None:
        self._anchors = sorted(anchors, key=lambda anchor: anchor.size)
        self._bridges = bridges
        self._findings = findings
        self._wants_tree = tree or any(anchor.root is not None for anchor in anchors)
        self._edge: Edge | None = Edge() if self._wants_tree else None
        self._at = 0
        self._good_to = 0
        self._is_different = False
        self.signed_to = 0
        self._next_stop(0)

    @property
    def edge(self) -> Edge | None:
        """The tree up to the last confirmed line, or None if it is not wanted or could not be grown."""
        return self._edge

    def _next_stop(self, seq: int) -> None:
        """Set the number of the next line after which there is an anchor to compare."""
        while self._at < len(self._anchors) and self._anchors[self._at].size <= seq:
            self._at += 1
        sizes = [self._anchors[self._at].size] if self._at < len(self._anchors) else []
        self.stop = min([*sizes, *(each.last_seq for each in self._bridges if each.last_seq > seq)], default=_NEVER)

    def bridge_over(self, first_seq: int, last_seq: int) -> Bridge | None:
        """Return the bridge over these lines, or None if the ledger does not say that they were removed."""
        return next((each for each in self._bridges if each.covers(first_seq, last_seq)), None)

    def skip(self, bridge: Bridge | None, first_seq: int, last_seq: int, claimed: bytes | None) -> None:
        """Continue after missing lines. `claimed` is the digest of the last of them according to the next line.

        Of the anchors among them, only one at the last of them can be compared.
        """
        if bridge is not None and bridge.last_seq == last_seq and bridge.nodes is not None and self._wants_tree:
            self._edge = Edge(last_seq, bridge.nodes)
        elif first_seq == last_seq and claimed is not None:
            self.confirm(last_seq, claimed)
            return
        else:
            self._edge = None
            while self._at < len(self._anchors) and self._anchors[self._at].size < last_seq:
                self._at += 1
            at_end = self._anchors[self._at : self._at + 1]
            if claimed is not None and at_end and at_end[0].size == last_seq:
                self._compare(at_end[0], claimed, claimed)
        self._next_stop(last_seq)

    def confirm(self, seq: int, digest: bytes, own: bytes | None = None) -> None:
        """Take the digest of the next line. `own` is that of the stored bytes, if the line after it names another."""
        if self._edge is not None:
            self._edge.append(leaf_hash(digest))
        if seq == self.stop:
            self.reached(seq, digest, own)

    def reached(self, seq: int, digest: bytes, own: bytes | None = None) -> None:
        """Compare the anchors at this line, which is in the tree already."""
        while self._at < len(self._anchors) and self._anchors[self._at].size == seq:
            self._compare(self._anchors[self._at], digest, own or digest)
            self._at += 1
        for bridge in self._bridges:
            if bridge.last_seq == seq and bridge.hash is not None:
                if bridge.hash == digest.hex():
                    if self._edge is None and self._wants_tree and bridge.nodes is not None:
                        self._edge = Edge(seq, bridge.nodes)
                else:
                    self._findings.broken(
                        "altered",
                        seq,
                        f"line {seq} is not the one that the ledger says was removed: expected the hash {bridge.hash}, "
                        f"got {digest.hex()}",
                    )
        self._next_stop(seq)

    def _compare(self, anchor: Anchor, digest: bytes, own: bytes) -> None:
        agrees = anchor.hash in (digest.hex(), own.hex())
        if agrees and self._edge is None and self._wants_tree and anchor.nodes is not None:
            self._edge = Edge(anchor.size, anchor.nodes)
        elif agrees and anchor.root is not None and self._edge is not None and self._edge.root() != anchor.root:
            self._differs(anchor, f"expected the root {anchor.root.hex()}, got {self._edge.root().hex()}")
            return
        if agrees:
            self._good_to = self.signed_to = anchor.size
            return
        self._differs(anchor, f"expected the hash {anchor.hash}, got {digest.hex()}")

    def _differs(self, anchor: Anchor, what: str) -> None:
        if self._is_different:
            return  # after a rewritten line all later anchors differ
        self._is_different = True
        first = self._good_to + 1
        self._findings.broken(
            "altered",
            first,
            f"lines {first} to {anchor.size} are not what was signed as their {anchor.kind} (ledger line "
            f"{anchor.place}): {what}",
            anchor.size,
        )

    def reach(self, due: int | None = None) -> int:
        """Return the largest signed size that is due, or 0 if there is none."""
        return max((each.size for each in self._anchors if due is None or each.size <= due), default=0)

    def end(self, last_seq: int, due: int | None = None) -> None:
        """Report the anchors that the stream does not reach, since it ends with line `last_seq`.

        Lines after `due` need not be there yet.
        """
        beyond = [each for each in self._anchors if each.size > last_seq and (due is None or each.size <= due)]
        if not beyond:
            return
        longest = beyond[-1]
        if self.bridge_over(last_seq + 1, longest.size) is None:
            self._findings.broken(
                "cut",
                last_seq + 1,
                f"lines {last_seq + 1} to {longest.size} are cut off: the stream ends at line {last_seq}, and its "
                f"{longest.kind} (ledger line {longest.place}) is signed for {longest.size}",
                longest.size,
            )


def rising(anchors: Sequence[Anchor]) -> list[Anchor]:
    """Return the heads except those that contradict an earlier one, which the ledger's check reports."""
    found: list[Anchor] = []
    for anchor in anchors:
        if not found or anchor.size >= found[-1].size:
            found.append(anchor)
    return found
