"""Check the lines of one stream: their numbers, their hash chain, and through `AnchorWalk` their signed hashes.

`Chain` takes blocks of whole lines. Nearly every line ends with the number and the hash that the line before it
requires, which one comparison of its last bytes shows. Only other lines are examined more closely. A finding names the
number of its line, and the check continues after it, since one changed line must not hide another.
"""

from __future__ import annotations

import contextlib
import json
import re
from binascii import hexlify
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

from otel_audit.journal.line import GAP, SEGMENT, TAIL, TAIL_BYTES, is_system, last_line_in, system_start
from otel_audit.signing.tree import leaf_hash
from otel_audit.verification.anchors import AnchorWalk
from otel_audit.verification.findings import Findings

__all__ = ["Chain", "DamagedBytes", "named_damage"]

_GAP: Final = system_start(GAP)
_HEADER: Final = system_start(SEGMENT)
_TOMBSTONE: Final = system_start("erased")
_GAP_LINE: Final = re.compile(rb"^%b[^\n]*" % re.escape(_GAP), re.MULTILINE)
_MOST_OUT_OF_PLACE: Final = 1000
_MOST_DAMAGE: Final = 1000


class DamagedBytes(NamedTuple):
    """Bytes of a segment that are not a line of its stream, and the number of the last line before them."""

    segment: int
    offset: int
    length: int
    after_seq: int


class _Tail(NamedTuple):
    """The number and the link of a line."""

    seq: int
    prev: bytes | None


class Chain:
    """Checks the lines of one stream in order. For one thread.

    `seq` and `hash` belong to the last line so far, and nothing is wrong up to line `chain_to`. With `has_window`, the
    source removes old lines, so the first ones may be missing. With `has_foreign`, the source keeps records of the
    plain logs API unchanged, without their lines. A stream of such records, whose headers say `foreign`, has only
    system lines there; a hole next to any other line has another reason.
    """

    def __init__(
        self,
        stream_id: str,
        walk: AnchorWalk,
        findings: Findings,
        *,
        has_window: bool = False,
        has_foreign: bool = False,
    ) -> None:
        self.stream_id = stream_id
        self.walk = walk
        self.first_seq = 0
        self.seq = 0
        self.hash = b""
        self.lines = 0
        self.damage: list[DamagedBytes] = []
        self.headers: list[tuple[int, int, Mapping[str, Any]]] = []  # segment, number of its line, what it says
        self.bridged: list[tuple[int, int]] = []  # first and last of missing lines that retention removed
        self.ledger_id = ""  # of the ledger that a header names
        self.broken_at: int | None = None
        self.time_ns = 0
        self._findings = findings
        self._own = stream_id.encode()
        self._tail = b',"stream_id":"%b","seq":' % self._own
        self._digest = b""  # of the last line, which is confirmed by the next one
        self._link: bytes | None = None  # the hash that the last line names
        self._others: list[bytes] = []  # digests of other lines with the number of the last one
        self._out_of_place: dict[int, None] = {}
        self._is_tombstone = False
        self._has_window = has_window
        self._has_foreign = has_foreign
        self._is_foreign = False  # by the last header
        self._foreign: list[tuple[int, int]] = []  # first and last of missing lines that are records of the plain API
        self._last = b""
        self._remains: dict[int, None] = {}

    @property
    def last_ns(self) -> int:
        """The time at which the last line was recorded, or 0 if there is none."""
        match = TAIL.search(self._last, max(0, len(self._last) - TAIL_BYTES))
        return int(match[2]) if match is not None else 0

    @property
    def chain_to(self) -> int:
        """The last line up to which nothing is wrong."""
        return self.seq if self.broken_at is None else self.broken_at - 1

    @property
    def is_in_memory(self) -> bool:
        """True if the writer says that its journal is lost with the machine."""
        return bool(self.headers) and self.headers[0][2].get("durability") == "memory"

    def feed(self, data: bytes, segment: int, offset: int) -> None:
        """Check whole lines, each with its newline, that begin at this offset of a segment."""
        pieces = data[:-1].split(b"\n")
        if not offset and pieces[0].startswith(_HEADER):
            self._take_header(pieces[0], segment)
        self._count_gaps(data)
        at, begin = 0, offset
        place = 0  # the piece whose offset `begin` is
        while True:
            at = self._run(pieces, at)
            if at >= len(pieces):
                return
            begin += sum(map(len, pieces[place:at])) + at - place
            place = at
            self._take(pieces[at], pieces[at + 1] if at + 1 < len(pieces) else None, segment, begin)
            at += 1

    def _run(self, pieces: Sequence[bytes], at: int) -> int:
        """Check lines while each is what the line before it requires. Return the place of the first other one."""
        if not self.seq or self._others:
            return at
        seq, link, digest, previous = self.seq, self.hash, self._digest, self._link
        tail, walk, count = self._tail, self.walk, len(pieces)
        edge, stop, begin = walk.edge, walk.stop, at
        while at < count:
            content = pieces[at]
            if not content.endswith(b'%b%d,"prev_hash":"%b"}' % (tail, seq + 1, link)):
                break
            if edge is not None:
                edge.append(leaf_hash(digest))
            if seq == stop:
                walk.reached(seq, digest)
                edge, stop = walk.edge, walk.stop
            seq += 1
            digest = sha256(content).digest()
            previous, link = link, hexlify(digest)
            at += 1
        if at > begin:
            self._last = pieces[at - 1]
            self._is_tombstone = self._last.startswith(_TOMBSTONE)
            self.seq, self.hash, self._digest, self._link = seq, link, digest, previous
            self.lines += at - begin
        return at

    def _take(self, content: bytes, upcoming: bytes | None, segment: int, offset: int) -> None:
        """Check a line that is not simply the next one."""
        tail = self._tail_of(content)
        if tail is not None and tail.seq != self.seq + 1 and (rescued := last_line_in(content)) is not content:
            self._take_damage(DamagedBytes(segment, offset, len(content) - len(rescued), self.seq))
            content = rescued
        if tail is None:
            self._take_damage(DamagedBytes(segment, offset, len(content), self.seq))
            return
        digest = sha256(content).digest()
        if not self.seq:
            self._begin(tail, digest)
        elif tail.seq == self.seq + 1:
            self._follow(tail, digest, upcoming)
        elif tail.prev == self.hash and tail.prev is not None:
            self._broken(self.seq + 1, "altered", f"line {self.seq + 1} says that its number is {tail.seq}")
            self._confirm_last(self._digest)
            tail = _Tail(self.seq + 1, tail.prev)
        elif tail.seq == self.seq:
            self._repeat(tail, digest)
            return
        elif tail.seq < self.seq:
            self._stray(tail.seq)
            return
        else:
            ahead = None if upcoming is None else self._tail_of(upcoming)
            if ahead is not None and ahead.seq == self.seq + 1:
                self._stray(tail.seq)
                return
            self._leap(tail, is_system=is_system(content))
        self._become(tail, digest, content)

    def _become(self, tail: _Tail, digest: bytes, content: bytes) -> None:
        self.seq, self._digest, self.hash, self._link = tail.seq, digest, digest.hex().encode(), tail.prev
        self._others = []
        self._last = content
        self._is_tombstone = content.startswith(_TOMBSTONE)
        self.lines += 1

    def _begin(self, tail: _Tail, digest: bytes) -> None:
        self.first_seq = tail.seq
        if tail.seq > 1:
            self._over_gap(1, tail)
        elif tail.prev is not None:
            self._broken(1, "altered", "line 1 names a line before it")

    def _follow(self, tail: _Tail, digest: bytes, upcoming: bytes | None) -> None:
        """Check the line with the next number. Its hash may show that the line before it was changed."""
        if tail.prev == self.hash:
            self._confirm_last(self._digest)
            return
        other = next((each for each in self._others if each.hex().encode() == tail.prev), None)
        if other is not None:
            self._confirm_last(other)
            return
        ahead = None if upcoming is None else self._tail_of(upcoming)
        is_vouched = ahead is None or ahead.prev == digest.hex().encode()
        if is_vouched and tail.prev is not None:
            kind = "tombstone" if self._is_tombstone else "altered"
            what = "was overwritten as erased, and no entry says so" if self._is_tombstone else "was changed"
            self._broken(
                self.seq,
                kind,
                f"line {self.seq} {what}: line {tail.seq} names its hash {tail.prev.decode()}, it has "
                f"{self.hash.decode()}",
            )
            self.walk.confirm(self.seq, bytes.fromhex(tail.prev.decode()), self._digest)
            return
        self._broken(
            self.seq,
            "altered",
            f"line {tail.seq} or the one before it was changed: it does not name the hash of line {self.seq}, and is "
            f"not the line that line {tail.seq + 1} names",
            tail.seq,
        )
        self._confirm_last(self._digest)

    def _repeat(self, tail: _Tail, digest: bytes) -> None:
        """Check another line with the number of the last one. The next line shows which of them is right."""
        if digest == self._digest:
            self._broken(tail.seq, "inserted", f"line {tail.seq} stands twice")
            return
        self._broken(tail.seq, "inserted", f"two different lines have the number {tail.seq}")
        if tail.prev == self._link and len(self._others) < _MOST_OUT_OF_PLACE:
            self._others.append(digest)

    def _stray(self, seq: int) -> None:
        if len(self._out_of_place) < _MOST_OUT_OF_PLACE:
            self._out_of_place[seq] = None
        self._broken(seq, "inserted", f"a line with the number {seq} stands behind line {self.seq}, out of its place")

    def _leap(self, tail: _Tail, *, is_system: bool) -> None:
        """Continue at a line after missing ones."""
        self._confirm_last(self._digest)
        self._over_gap(self.seq + 1, tail, is_foreign=is_system and self._lacks_foreign)

    @property
    def _lacks_foreign(self) -> bool:
        """True if the lines of records of the plain logs API may be missing after the last line."""
        return self._has_foreign and self._is_foreign and is_system(self._last)

    def _over_gap(self, first: int, tail: _Tail, *, is_foreign: bool = False) -> None:
        last = tail.seq - 1
        claimed = bytes.fromhex(tail.prev.decode()) if tail.prev is not None else None
        bridge = self.walk.bridge_over(first, last)
        if (
            bridge is None
            and last - first < len(self._remains)
            and all(seq in self._remains for seq in range(first, last + 1))
        ):
            pass  # which is said
        elif bridge is None and first == 1 and self._has_window:
            self._findings.unproven("window", 1, f"lines 1 to {last} are not there any more, or never were", last)
        elif bridge is None and is_foreign:
            self._foreign.append((first, last))
        elif bridge is None:
            moved = [seq for seq in self._out_of_place if first <= seq <= last]
            kind = "moved" if moved else "missing"
            what = f"line {first} is" if first == last else f"lines {first} to {last} are"
            said = " in their place" if moved else ""
            self._broken(first, kind, f"{what} not there{said}", last)
        elif bridge is not None and bridge.last_seq == last and bridge.hash is not None and claimed is not None:
            if bridge.hash != claimed.hex():
                self._broken(
                    last,
                    "altered",
                    f"line {tail.seq} does not follow on line {last} as the ledger says that it was removed: expected "
                    f"the hash {bridge.hash}, got {claimed.hex()}",
                )
            elif first > 1 and bridge.first_seq == first and bridge.prev_hash not in (None, self.hash.decode()):
                self._broken(
                    self.seq,
                    "altered",
                    f"line {self.seq} is not the one that the removed line {first} names: expected the hash "
                    f"{bridge.prev_hash}, got {self.hash.decode()}",
                )
        if bridge is not None:
            (self._foreign if is_foreign else self.bridged).append((first, last))
        self.walk.skip(bridge, first, last, claimed)

    def _confirm_last(self, digest: bytes) -> None:
        self.walk.confirm(self.seq, digest)

    def take_remains(self, seq: int, body: bytes) -> None:
        """Check what a store has instead of a line. A body that is the beginning of one was cut for its length."""
        if body.endswith(b"}") or not body.startswith(b"{"):
            self._broken(seq, "altered", f"line {seq} was changed: what is there instead is not a line of a journal")
        else:
            self._findings.unproven("cut_short", seq, f"of line {seq} only the first {len(body)} bytes are there")
        if len(self._remains) < _MOST_OUT_OF_PLACE:
            self._remains[seq] = None

    def end(self, due: int | None = None) -> None:
        """Accept the last line, although no line follows to confirm it. Lines after `due` need not be there yet."""
        if self.seq:
            self._confirm_last(self._digest)
        if self._is_tombstone:
            self._broken(self.seq, "tombstone", f"line {self.seq} was overwritten as erased, and no entry says so")
        if self._lacks_foreign:
            if (signed := self.walk.reach(due)) > self.seq:
                self._foreign.append((self.seq + 1, signed))
        else:
            self.walk.end(self.seq, due)
        self._tell_foreign()

    def _tell_foreign(self) -> None:
        """Report once how many missing lines are records of the plain logs API, since each segment may have a hole."""
        if not self._foreign:
            return
        first, last = self._foreign[0][0], self._foreign[-1][1]
        count = sum(end - begin + 1 for begin, end in self._foreign)
        self._findings.unproven(
            "foreign",
            first,
            f"{count} of the lines {first} to {last} are records of the plain logs API, which are kept here without "
            "their lines: only the journal shows whether they are whole",
            last,
        )

    def _broken(self, seq: int, kind: str, message: str, last_seq: int | None = None) -> None:
        self.broken_at = seq if self.broken_at is None else min(self.broken_at, seq)
        self._findings.broken(kind, seq, message, last_seq)

    def _tail_of(self, content: bytes) -> _Tail | None:
        match = TAIL.search(content, max(0, len(content) - TAIL_BYTES))
        if match is None or match[3] != self._own or not content.startswith(b"{"):
            return None
        return _Tail(int(match[4]), match[5])

    def _take_damage(self, damage: DamagedBytes) -> None:
        """Remember the place of bytes that are not a line. Adjacent pieces become one."""
        last = self.damage[-1] if self.damage else None
        if last is not None and last.segment == damage.segment and last.offset + last.length + 1 == damage.offset:
            self.damage[-1] = last._replace(length=last.length + 1 + damage.length)
        elif len(self.damage) < _MOST_DAMAGE:
            self.damage.append(damage)

    def take_damage(self, segment: int, offset: int, length: int) -> None:
        """Note bytes that are too many to be a line, or that have no newline at the end."""
        self._take_damage(DamagedBytes(segment, offset, length, self.seq))

    def _take_header(self, content: bytes, segment: int) -> None:
        header: object = None
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            header = json.loads(content)["segment"]
        tail = self._tail_of(content)
        if tail is None or not isinstance(header, dict):
            return
        self._is_foreign = header.get("foreign") is True
        if not self.time_ns and (match := TAIL.search(content, max(0, len(content) - TAIL_BYTES))):
            self.time_ns = int(match[2])
        anchor = header.get("ledger")
        if isinstance(anchor, dict) and isinstance(named := anchor.get("directory_id"), str):
            self.ledger_id = named
        # Keep only what is needed later, since a header holds the whole resource and there may be thousands of them.
        if not self.headers or header.get("damage") is not None or header.get("format") != 1:
            self.headers.append((segment, tail.seq, header))

    def _count_gaps(self, data: bytes) -> None:
        """Report where the writer itself recorded a loss of events."""
        if _GAP not in data:
            return
        for match in _GAP_LINE.finditer(data):
            if (tail := self._tail_of(match[0])) is not None:
                self._findings.notice("gap", tail.seq, f"line {tail.seq} says that events were lost before it")


def named_damage(header: Mapping[str, Any]) -> tuple[int, int, int, str] | None:
    """Return segment, offset, length and SHA-256 of the damage that a segment header names, or None."""
    damage: Any = header.get("damage")
    try:
        segment, offset, length, digest = (damage[name] for name in ("segment", "offset", "length", "sha256"))
    except (TypeError, KeyError):
        return None
    if all(type(each) is int for each in (segment, offset, length)) and type(digest) is str:
        return segment, offset, length, digest
    return None
