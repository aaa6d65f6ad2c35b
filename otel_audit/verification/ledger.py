"""Check one ledger: its chain and tree, its notes and their signatures, its keys, and its entries.

A note is believed if its root is that of the lines before it, and if its signatures are valid. Of each epoch only the
signature of the last note is verified, since the tree of that note contains all earlier ones. That makes 720 signatures
a month, while a busy directory has a million notes.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from otel_audit.errors import NoteMalformed, ProofInvalid, SignatureInvalid
from otel_audit.journal.ledger.entries import Entry, Header, SignedNote, statement
from otel_audit.journal.line import Line
from otel_audit.signing.keys import VerifierKey, strict_base64
from otel_audit.signing.note import Signature
from otel_audit.signing.tree import Edge
from otel_audit.verification.anchors import AnchorWalk, Bridge
from otel_audit.verification.chain import Chain
from otel_audit.verification.claims import Claims
from otel_audit.verification.findings import Findings, LedgerReport
from otel_audit.verification.own_removal import OwnRemoval
from otel_audit.verification.pins import NOTES_REMEMBERED, PinCheck, Pins, SeenNote

__all__ = ["LedgerCheck"]


class LedgerCheck:
    """Checks the lines of one ledger in order. For one thread.

    Each entry goes into `claims` as soon as a note covers it. `formers` are the ledgers checked before, by origin, and
    `follows` is True if one of them is of the same directory. `keys` returns the public keys of the epochs before a
    line, for a ledger whose first lines were removed. With `has_window`, the source removes old lines, so the ledger is
    read from the first header that has the tree before it.
    """

    def __init__(
        self,
        ledger_id: str,
        claims: Claims,
        pins: Pins,
        *,
        formers: Mapping[str, LedgerCheck] | None = None,
        follows: bool = False,
        keys: Callable[[int], Mapping[int, VerifierKey]] = lambda seq: {},
        has_window: bool = False,
    ) -> None:
        self.ledger_id = ledger_id
        self._has_window = has_window
        self._passed_over = 0  # the last line before the first header with a tree
        self.findings = Findings(ledger_id)
        self.claims = claims
        self.report = LedgerReport()
        self.begin_ns = 0
        self.pins = PinCheck(ledger_id, pins, claims, self.findings)
        self._formers = formers or {}
        self._follows = follows
        self._keys_before = keys
        self._keys: Mapping[int, VerifierKey] = {}
        self._removal = OwnRemoval(ledger_id, claims, self.findings)
        self._bridges: list[Bridge] = []
        self._walk = AnchorWalk((), self._bridges, self.findings, tree=True)
        self.chain = Chain(ledger_id, self._walk, self.findings)
        self._turn: list[Entry] = []
        self._key: VerifierKey | None = None
        self._identity: VerifierKey | None = None
        self._epoch = 0
        self._next_key: VerifierKey | None = None
        self._last: SeenNote | None = None
        self._notes: OrderedDict[int, SeenNote] = OrderedDict()
        self._checked_place = 0
        self._is_keyless = False  # the ledger begins later, and nothing shows with which key
        self.epoch_keys: list[VerifierKey] = []

    @property
    def begins_later(self) -> bool:
        """True if its first lines are missing, and with them their entries about streams."""
        return bool(self._passed_over) or self.chain.first_seq > 1

    def take(self, line: Line) -> None:
        """Check the next line."""
        said = statement(line)
        if isinstance(said, Header) and line.seq != self.chain.seq + 1:
            self._bridge_to(said)
        if self._has_window and line.seq > 1 and not self.chain.seq and not self._bridges:
            self._passed_over = line.seq  # without the tree before it, no note can be compared
            return
        self.chain.feed(line.content + b"\n", line.segment, line.offset)
        if self.chain.seq != line.seq:
            return  # out of place, which is reported
        match said:
            case Entry() as entry:
                self._turn.append(entry)
            case SignedNote() as note:
                self._take_note(note)
            case Header() as header:
                self._take_header(header)
            case _:
                self._broken("entry", line.seq, f"ledger line {line.seq} is neither an entry nor a note nor a header")

    def is_as(self, told: Mapping[str, Any]) -> bool:
        """Return True if the next ledger names this one as its former ledger."""
        last = self._last
        if last is None or self.findings.has_broken:
            return False
        root = base64.b64encode(last.checkpoint.root).decode()
        return told.get("size") == last.checkpoint.size and told.get("root") in (root, last.checkpoint.root.hex())

    def take_damage(self, segment: int, offset: int, length: int) -> None:
        """Note bytes that are not a line of the ledger."""
        self.chain.take_damage(segment, offset, length)

    def _bridge_to(self, header: Header) -> None:
        """Continue at a header after missing lines, if it says why. It holds the edge of the tree before it."""
        first, last = self.chain.seq + 1, header.line.seq - 1
        if first > last or header.content.get("size") != last:
            return
        try:
            nodes = tuple(strict_base64(each, "edge") for each in header.content["edge"])
            Edge(last, nodes)
        except (NoteMalformed, ProofInvalid, KeyError, TypeError, AttributeError):
            return
        if first == 1:
            self._begin_later(last, header)
        elif header.content.get("damage") is None:
            return
        else:
            self.findings.unproven(
                "lost", first, f"ledger lines {first} to {last} were lost: writing them to the disk had failed", last
            )
        self._bridges.append(Bridge(first, last, None, None, nodes))

    def _begin_later(self, last: int, header: Header) -> None:
        """Begin with the key of the epoch in which the first remaining line was written."""
        self.begin_ns = header.line.tail.observed_ns
        self.claims.begins_later = True
        self._removal.follows = header
        self._keys = self._keys_before(header.line.seq)
        if not self._keys:
            self._is_keyless = True
            self.findings.unproven(
                "window" if self._has_window else "ledger_begin",
                1,
                f"ledger lines 1 to {last} are not there{self._words_of_window(last)}, and nothing shows which keys "
                "they announced",
                last,
            )
            return
        self.findings.notice("ledger_begin", 1, f"ledger lines 1 to {last} were removed; their keys are known", last)
        self._epoch = max(self._keys)
        self.epoch_keys += [self._keys[number] for number in sorted(self._keys)]
        self._key = self._keys[self._epoch]
        self.report.origin = self._key.name

    def _words_of_window(self, last: int) -> str:
        """Return what to add about missing lines if some of them are there, but before the first tree of the window."""
        return ", or are of no use without the tree before them" if self._passed_over == last else ""

    def _take_header(self, header: Header) -> None:
        named = header.content.get("directory_id")
        if named != self.ledger_id:
            self._broken(
                "entry", header.line.seq, f"ledger line {header.line.seq}: expected the directory id {self.ledger_id}"
            )

    def _take_note(self, signed: SignedNote) -> None:
        place, checkpoint = signed.line.seq, signed.checkpoint
        edge = self._walk.edge
        if edge is not None and edge.size == checkpoint.size and edge.root() != checkpoint.root:
            self._broken(
                "root",
                place,
                f"the note in ledger line {place} has another root than the {checkpoint.size} lines before it: "
                f"expected {edge.root().hex()}, got {checkpoint.root.hex()}",
            )
        seen = SeenNote(signed.note, checkpoint, place, signed.line.tail.observed_ns)
        for entry in self._turn:
            self._apply(entry)
        self._turn.clear()
        if self._key is None and self._is_keyless:
            pass  # which is said
        elif self._key is None:
            self._broken("key", place, f"the note in ledger line {place} has no key: the ledger names none before it")
        elif checkpoint.origin != self._key.name:
            self._broken(
                "origin",
                place,
                f"the note in ledger line {place} is of {checkpoint.origin}, the ledger is {self._key.name}",
            )
        self._last = seen
        self.report.notes += 1
        self._notes[checkpoint.size] = seen
        if len(self._notes) > NOTES_REMEMBERED:
            self._notes.popitem(last=False)
        self.pins.take(seen)
        if self._next_key is not None:
            self._check_signature(seen)
            self._key, self._next_key = self._next_key, None
            self.epoch_keys.append(self._key)

    def _apply(self, entry: Entry) -> None:
        place, content, time_ns = entry.line.seq, entry.content, entry.line.tail.observed_ns
        if self._next_key is not None:
            self._broken("key", place, f"ledger line {place} follows the entry that ends its epoch, before the note")
        match entry.kind:
            case "begin":
                self._begin(content, place, time_ns)
            case "key":
                self._take_key(content, place)
            case "signature":
                self._take_signature(content, place)
            case "retain" if content.get("stream") == self.ledger_id:
                self._take_removal(content, place)
            case _:
                self.claims.take(entry.kind, content, place, time_ns, self.findings)

    def _begin(self, content: Mapping[str, Any], place: int, time_ns: int) -> None:
        if self._key is not None:
            self._broken("key", place, f"ledger line {place} begins the ledger a second time")
            return
        self.begin_ns = time_ns
        origin = f"{content.get('log_name')}/{self.ledger_id}"
        keys = content.get("keys")
        try:
            read = [VerifierKey.parse(each) for each in keys] if isinstance(keys, list) else []
        except (NoteMalformed, TypeError, AttributeError) as error:
            self._broken("key", place, f"ledger line {place}: {error}")
            return
        if not read or any(key.name != origin for key in read):
            self._broken("key", place, f"ledger line {place}: expected keys with the name {origin}")
            return
        self.report.origin = origin
        self._key = read[0]
        self._identity = read[1] if len(read) > 1 else None
        self.epoch_keys.append(self._key)
        self._epoch = 1
        self._check_former(content.get("former"), place)

    def _take_removal(self, content: Mapping[str, Any], place: int) -> None:
        if (begin := self._removal.take(content, place)) is not None:
            keys = begin.get("keys")
            with suppress(NoteMalformed, TypeError, AttributeError):
                identities = keys[1:] if isinstance(keys, list) else []
                self._identity = VerifierKey.parse(identities[0]) if identities else None
            self._check_former(begin.get("former"), place)

    def _check_former(self, told: object, place: int) -> None:
        if not isinstance(told, dict):
            if self._follows:
                self.findings.unproven(
                    "former", place, f"ledger {self.ledger_id} does not name the one before it in this directory"
                )
            return
        origin, reason = told.get("origin"), told.get("reason") or "no reason given"
        before = self._formers.get(origin) if isinstance(origin, str) else None
        if before is None:
            which = origin or told.get("directory_id")
            self.findings.unproven(
                "former",
                place,
                f"the ledger before this one, {which}, cannot be read ({reason}): nobody knows what it said",
            )
        elif not before.is_as(told):
            self._broken("former", place, f"the ledger before this one, {origin}, is not what this one says it was")
        else:
            self.pins.take_former(before.pins)
            self.findings.notice("former", place, f"the ledger was begun anew after {origin}: {reason}")

    def _take_key(self, content: Mapping[str, Any], place: int) -> None:
        try:
            key = VerifierKey.parse(content["vkey"])
        except (NoteMalformed, KeyError, AttributeError, TypeError) as error:
            self._broken("key", place, f"ledger line {place}: expected the key of the next epoch, got none: {error}")
            return
        epoch = content.get("epoch")
        if self._is_keyless and not self._epoch and type(epoch) is int and key.name.endswith(f"/{self.ledger_id}"):
            self._epoch = epoch - 1  # the number before is unknown
            self.report.origin = key.name
        if epoch != self._epoch + 1 or (self._key is not None and key.name != self._key.name):
            self._broken("key", place, f"ledger line {place}: expected the key of epoch {self._epoch + 1}")
        self._epoch += 1
        self._next_key = key

    def _take_signature(self, content: Mapping[str, Any], place: int) -> None:
        """Take a later signature, by a command or a witness, of an earlier note."""
        size = content.get("size")
        seen = self._notes.get(size) if type(size) is int else None
        try:
            signature = Signature.parse(content["line"])
        except (NoteMalformed, KeyError, AttributeError, TypeError):
            self._broken("entry", place, f"ledger line {place}: expected a signature line of a note, got none")
            return
        if seen is not None:
            self.pins.take_later(seen, signature)

    def _check_signature(self, seen: SeenNote) -> None:
        """Report a note that the key of the epoch did not sign."""
        if self._key is None or seen.place == self._checked_place:
            return
        self._checked_place = seen.place
        keys = [self._key, *([self._identity] if self._identity is not None else [])]
        try:
            signers = seen.note.verified(keys)
        except SignatureInvalid as error:
            self._broken("signature", seen.place, f"the note in ledger line {seen.place}: {error}")
            return
        if self._key not in signers:
            self._broken(
                "signature", seen.place, f"the note in ledger line {seen.place} is not signed by the key of its epoch"
            )

    @property
    def is_known(self) -> bool:
        """True if `--known` is about this ledger."""
        origin = self._last.checkpoint.origin if self._last is not None else ""
        return self.pins.is_known(self.report.origin or origin)

    def finish(self) -> None:
        """Judge the ledger after its last line."""
        for damage in self.chain.damage:
            self._broken(
                "damage",
                damage.after_seq + 1,
                f"{damage.length} bytes after ledger line {damage.after_seq} are not a line of it",
            )
        if self._last is None and self._passed_over:
            self.findings.unproven(
                "window",
                1,
                f"of ledger {self.ledger_id} no header is there that has the tree before it: nothing shows that its "
                f"lines up to {self._passed_over} are whole",
                self._passed_over,
            )
            return
        if self._last is None:
            self._broken("no_note", None, f"ledger {self.ledger_id} has no signed note")
            return
        self._check_signature(self._last)
        if not self._has_window:
            self._removal.judge()
        self._finish_report()
        self.pins.finish(self._last, self.chain.first_seq, self.epoch_keys, is_keyless=self._is_keyless)

    def _finish_report(self) -> None:
        last, report = self._last, self.report
        assert last is not None
        report.size, report.root = last.checkpoint.size, last.checkpoint.root.hex()
        report.note = bytes(last.note).decode()
        report.note_time_ns, report.epochs = last.time_ns, self._epoch
        report.vkey = str(self._key) if self._key is not None else ""
        report.identity = str(self._identity) if self._identity is not None else ""
        report.identity_time_ns = self.pins.identity_ns

    def _broken(self, kind: str, seq: int | None, message: str, last_seq: int | None = None) -> None:
        self.findings.broken(kind, seq, message, last_seq)
