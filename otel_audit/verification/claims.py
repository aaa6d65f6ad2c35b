"""The ledger's claims about each stream of a directory: its opening, heads, end and removals.

Entries are taken in the order of the ledger, and only once a signed note covers them. Each is checked against earlier
ones; whether the streams agree is checked later, with `anchors` and `bridges`. Only the last of the many heads of a
stream is kept, since it commits to all lines before it. A stream that fails is read again with all of its heads.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from otel_audit.errors import NoteMalformed
from otel_audit.signing.keys import strict_base64
from otel_audit.verification.anchors import Anchor, Bridge, join
from otel_audit.verification.findings import Findings

__all__ = ["Claims", "StreamClaims", "bridge_of"]

_DAY_NS: Final = 86_400 * 10**9
_HASH: Final = re.compile(r"[0-9a-f]{64}\Z")
_HASH_BYTES: Final = 32
_HEADS: Final = ("head", "end", "adopt", "found")


@dataclass(slots=True)
class StreamClaims:
    """The ledger's claims about one stream. For messages, places are the numbers of the ledger's lines."""

    stream_id: str
    findings: Findings
    opened: bool = False
    found: bool = False
    service: str = ""
    durability: str = ""
    boot_id: str = ""
    opened_place: int = 0
    retention_days: int | None = None
    retention_bytes: int | None = None
    declares_retention: bool = False
    opened_ns: int = 0
    last: Anchor | None = None
    due: int = 0
    start: Anchor | None = None
    end: Anchor | None = None
    adopted: Anchor | None = None
    anchored: int = 0
    retained_whole: bool = False
    bridges: list[Bridge] = field(default_factory=list)
    # The size of each head and the age of the ledger by then, for the age of removed lines: 16 bytes a head.
    sizes: array[int] = field(default_factory=lambda: array("q"))
    ages: array[int] = field(default_factory=lambda: array("q"))

    def signed_size(self) -> int:
        """Return the number of signed lines."""
        return self.last.size if self.last is not None else 0

    def removed_to(self) -> int:
        """Return the highest number of a removed line."""
        return max((bridge.last_seq for bridge in self.bridges), default=0)


class Claims:
    """The claims of a directory's ledgers about all of its streams.

    `watched` holds a function for each stream that is read a second time, which is called for each of its heads. Lines
    from before `from_ns` need not be read if a head with its edge lets the tree begin later. Entries written after
    `due_ns` need not be in a store yet.
    """

    def __init__(
        self,
        *,
        watched: Mapping[str, Callable[[Anchor], None]] | None = None,
        from_ns: int | None = None,
        due_ns: int | None = None,
    ) -> None:
        self.streams: dict[str, StreamClaims] = {}
        self.lived_ns = 0
        self.removed: dict[str, Bridge] = {}  # the removed lines of each ledger itself, according to it
        self.begins_later = False  # the first lines of a ledger are missing, and their entries unknown
        self._changed: set[str] = set()
        self._time_ns = 0
        self._watched = watched or {}
        self._from_ns = from_ns
        self._due_ns = due_ns

    def of(self, stream_id: str) -> StreamClaims:
        """Return the claims about a stream, which are empty for an unknown one."""
        found = self.streams.get(stream_id)
        if found is None:
            found = self.streams[stream_id] = StreamClaims(stream_id, Findings(stream_id))
        return found

    def take_changes(self) -> Mapping[str, int]:
        """Return the signed size of each stream with an entry since the last call."""
        changes = {stream_id: self.streams[stream_id].signed_size() for stream_id in self._changed}
        self._changed.clear()
        return changes

    def vouch(self, sizes: Mapping[str, int]) -> None:
        """Note up to which line of each stream a pin of the verifier vouches for it."""
        for stream_id, size in sizes.items():
            claims = self.of(stream_id)
            claims.anchored = max(claims.anchored, size)

    def take(self, kind: str, content: Mapping[str, Any], place: int, time_ns: int, ledger: Findings) -> None:
        """Take one entry that a note covers. `place` is the number of its line. `ledger` collects findings about it."""
        # A clock that was set back takes time away, and must not make what is removed look younger than it is: only
        # steps forward are counted, and what is asked below is whether less time than declared has passed.
        self.lived_ns += max(0, time_ns - self._time_ns) if self._time_ns else 0
        self._time_ns = time_ns
        stream_id = content.get("stream")
        if kind not in ("open", "retain", *_HEADS):
            return
        if type(stream_id) is not str:
            ledger.broken("entry", place, f"ledger line {place}: expected the id of a stream in a {kind!r} entry")
            return
        claims = self.of(stream_id)
        self._changed.add(stream_id)
        try:
            match kind:
                case "open":
                    self._open(claims, content, place)
                case "retain":
                    self._retain(claims, content, place)
                case _:
                    self._head(claims, kind, content, place)
        except (KeyError, TypeError, ValueError, NoteMalformed) as error:
            ledger.broken("entry", place, f"ledger line {place}: expected a {kind!r} entry, got another one: {error}")

    def _open(self, claims: StreamClaims, content: Mapping[str, Any], place: int) -> None:
        days, limit = content.get("retention_days"), content.get("retention_bytes")
        claims.opened = True
        claims.opened_ns = claims.opened_ns or self._time_ns
        claims.opened_place = claims.opened_place or place
        claims.service = _text(content.get("service"))
        claims.durability = _text(content.get("durability"))
        claims.boot_id = _text(content.get("boot_id"))
        claims.retention_days = days if type(days) is int else None
        claims.retention_bytes = limit if type(limit) is int else None
        claims.declares_retention = "retention_days" in content
        if not claims.sizes:
            claims.sizes.append(0)
            claims.ages.append(self.lived_ns)

    def _head(self, claims: StreamClaims, kind: str, content: Mapping[str, Any], place: int) -> None:
        anchor = _anchor(kind, content, place)
        if (watch := self._watched.get(claims.stream_id)) is not None:
            watch(anchor)
        last = claims.last
        if last is not None and (anchor.size < last.size or (anchor.size == last.size and anchor.hash != last.hash)):
            claims.findings.broken(
                "head",
                min(anchor.size, last.size),
                f"ledger lines {last.place} and {place} contradict each other: {last.size} lines with the hash "
                f"{last.hash}, later {anchor.size} lines with {anchor.hash}",
            )
            return
        if claims.end is not None and anchor.size > claims.end.size:
            claims.findings.broken(
                "behind_end",
                claims.end.size + 1,
                f"ledger line {place} has {anchor.size} lines of a stream that ended with {claims.end.size}",
                anchor.size,
            )
        claims.last = anchor
        if self._due_ns is None or self._time_ns <= self._due_ns:
            claims.due = anchor.size
        if anchor.nodes is not None and self._from_ns is not None and self._time_ns <= self._from_ns:
            claims.start = anchor
        claims.sizes.append(anchor.size)
        claims.ages.append(self.lived_ns)
        match kind:
            case "end":
                claims.end = anchor
            case "adopt":
                claims.adopted = anchor
                torn = content.get("torn_bytes")
                said = f", with {torn} bytes of a line that was not finished" if torn else ""
                claims.findings.notice(
                    "adopted", anchor.size, f"its process died; taken over at line {anchor.size}{said}"
                )
            case "found":
                claims.found = True

    def _retain(self, claims: StreamClaims, content: Mapping[str, Any], place: int) -> None:
        bridge = bridge_of(content)
        first, last = bridge.first_seq, bridge.last_seq
        reason = _text(content.get("reason")) or "no reason given"
        if last > claims.signed_size() and (claims.opened or not self.begins_later):
            claims.findings.broken(
                "retained_unsigned",
                claims.signed_size() + 1,
                f"ledger line {place} removes lines {first} to {last}, of which {claims.signed_size()} were signed",
                last,
            )
        self._check_age(claims, first, last, reason, place)
        claims.findings.notice(
            "retained",
            first,
            f"lines {first} to {last} were removed by retention ({reason}, ledger line {place})",
            last,
        )
        claims.retained_whole = claims.retained_whole or content.get("whole") is True
        join(claims.bridges, bridge)

    def _check_age(self, claims: StreamClaims, first: int, last: int, reason: str, place: int) -> None:
        """Report lines that were removed before the retention period that was declared when the stream was opened."""
        if not claims.declares_retention:
            return
        # The last line was written after the last head that does not cover it, and no line is older than that head.
        since = max((age for size, age in zip(claims.sizes, claims.ages, strict=True) if size < last), default=0)
        while len(claims.sizes) > 1 and claims.sizes[1] < last:
            del claims.sizes[0], claims.ages[0]
        if claims.retention_bytes is not None and reason != "age":
            return  # removed because of the directory's size limit
        days, lived_ns = claims.retention_days, self.lived_ns - since
        if days is None or lived_ns < days * _DAY_NS:
            declared = "for ever" if days is None else f"for {days} days"
            claims.findings.broken(
                "retained_young",
                first,
                f"ledger line {place} removes lines {first} to {last} ({reason}) after at most "
                f"{lived_ns / _DAY_NS:.1f} days; they were declared to be kept {declared}",
                last,
            )


def bridge_of(content: Mapping[str, Any]) -> Bridge:
    """Return the lines that were removed according to a `retain` entry.

    Raises:
        KeyError, TypeError, ValueError, NoteMalformed: the entry is malformed.
    """
    first, last = _size(content["first_seq"]), _size(content["last_seq"])
    if not 0 < first <= last:
        raise ValueError(f"lines {first} to {last}")
    return Bridge(first, last, _hash_or_none(content.get("prev_hash")), _hash(content["hash"]), _nodes(content))


def _anchor(kind: str, content: Mapping[str, Any], place: int) -> Anchor:
    root = content.get("root")
    return Anchor(
        _size(content["size"]),
        _hash(content["hash"]),
        _node(root) if root is not None else None,
        _nodes(content),
        kind,
        place,
    )


def _nodes(content: Mapping[str, Any]) -> tuple[bytes, ...] | None:
    edge = content.get("edge")
    if edge is None:
        return None
    nodes = tuple(map(_node, edge))
    size = _size(content["size"] if "size" in content else content["last_seq"])
    if len(nodes) != size.bit_count():
        raise ValueError(f"{len(nodes)} nodes for {size} lines")
    return nodes


def _node(value: object) -> bytes:
    node = strict_base64(value, "node of a tree") if type(value) is str else b""
    if len(node) != _HASH_BYTES:
        raise ValueError(f"a node of {len(node)} bytes")
    return node


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"a number of lines {value!r}")
    return value


def _hash(value: object) -> str:
    if type(value) is not str or not _HASH.match(value):
        raise ValueError(f"a hash {value!r}")
    return value


def _hash_or_none(value: object) -> str | None:
    return None if value is None else _hash(value)


def _text(value: object) -> str:
    return value if type(value) is str else ""
