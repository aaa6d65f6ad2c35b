"""The keys and notes that a verifier supplies, and the lines that they vouch for.

A pin vouches for the notes that bear its signature or equal it, and so for every line that a signed head under such a
note covers. The key of an epoch, given as `--known`, also vouches for what came later: it announced the next key, which
announced the one after it, and so on to the last note.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from otel_audit.errors import SignatureInvalid
from otel_audit.signing.keys import VerifierKey
from otel_audit.signing.note import Checkpoint, Note, Signature
from otel_audit.verification.claims import Claims
from otel_audit.verification.findings import Findings

__all__ = ["NOTES_REMEMBERED", "KnownNote", "PinCheck", "Pins", "SeenNote"]

NOTES_REMEMBERED: Final = 4096
"""How many notes may follow a note before a signature for it that comes later has no effect."""

_BEHIND_NS: Final = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class KnownNote:
    """A note that the verifier kept, with the ledger's name, size and root at that time."""

    note: Note
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Pins:
    """The pins of a verifier: a key that outsiders know, and an earlier note or the key of an earlier epoch.

    `stored` holds the newest note in a store for each ledger.
    """

    identity: VerifierKey | None = None
    known_note: KnownNote | None = None
    known_key: VerifierKey | None = None
    stored: Mapping[str, Checkpoint] = field(default_factory=dict)

    def words(self) -> tuple[str, ...]:
        """Return the names of the options that set them."""
        known = self.known_note is not None or self.known_key is not None
        return (*(("--key",) if self.identity is not None else ()), *(("--known",) if known else ()))


@dataclass(frozen=True, slots=True)
class SeenNote:
    """A note of the ledger, and its place."""

    note: Note
    checkpoint: Checkpoint
    place: int
    time_ns: int


class _Coverage:
    """The signed size of each stream under the newest note that one pin vouches for. Memory use is constant.

    A pin may vouch for a note after later ones were read, since some signatures are entries of their own. So the sizes
    that each note added wait until a note at or behind it is vouched for.
    """

    __slots__ = ("_older", "_waiting", "sizes")

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Mapping[str, int]] = OrderedDict()
        self._older: dict[str, int] = {}  # of notes before those that wait
        self.sizes: dict[str, int] = {}

    def take(self, size: int, added: Mapping[str, int]) -> None:
        """Note what the note at this size of the ledger adds."""
        self._waiting[size] = added
        if len(self._waiting) > NOTES_REMEMBERED:
            self._older.update(self._waiting.popitem(last=False)[1])

    def vouch(self, size: int) -> None:
        """Note that the pin vouches for the note at this size, and so for all notes before it."""
        while self._waiting and next(iter(self._waiting)) <= size:
            self.sizes.update(self._older)
            self._older.clear()
            self.sizes.update(self._waiting.popitem(last=False)[1])


class PinCheck:
    """Compares the notes of one ledger with the pins. For one thread.

    Call `take` for each note and `take_later` for a signature that follows in an entry of its own, then `finish` once.
    """

    def __init__(self, ledger_id: str, pins: Pins, claims: Claims, findings: Findings) -> None:
        self._ledger_id = ledger_id
        self._pins = pins
        self._claims = claims
        self._findings = findings
        self._by_identity, self._by_known, self._by_store = _Coverage(), _Coverage(), _Coverage()
        self._sizes: dict[str, int] = {}
        self._former: Mapping[str, int] = {}
        self._signed: SeenNote | None = None  # the newest note with a signature line of the key of --key
        self._signed_by_known: SeenNote | None = None  # the same for a key of --known
        self._other_place = 0  # of the newest note that an identity signed, and the key of --key did not
        self._is_note_compared = False
        self._known_ns = 0
        self._stored_ns = 0

    @property
    def vouched_ns(self) -> int:
        """The time of the newest note that a pin vouches for, or 0 if there is none."""
        return max(self._known_ns, self._stored_ns, self.identity_ns)

    @property
    def identity_ns(self) -> int:
        """The time of the newest note that the key of `--key` signed, or 0 if there is none."""
        return self._signed.time_ns if self._signed is not None else 0

    @property
    def is_stored(self) -> bool:
        """True if a store vouches for a note of this ledger."""
        return bool(self._stored_ns)

    def is_known(self, origin: str) -> bool:
        """Return True if `--known` is about the ledger of this name."""
        note, key = self._pins.known_note, self._pins.known_key
        return (note is not None and note.checkpoint.origin == origin) or (key is not None and key.name == origin)

    def take_former(self, former: PinCheck) -> None:
        """Note that the next note also covers the whole ledger before this one, which this one names correctly."""
        self._former = dict(former._sizes)

    def take(self, seen: SeenNote) -> None:
        """Compare a note, after the entries that it covers were taken."""
        added = {**self._former, **self._claims.take_changes()}
        self._former = {}
        self._sizes.update(added)
        for coverage in (self._by_identity, self._by_known, self._by_store):
            coverage.take(seen.checkpoint.size, added)
        known = self._pins.known_note
        if known is not None and known.checkpoint.origin == seen.checkpoint.origin:
            self._compare_known(known.checkpoint, seen)
        if seen.checkpoint == self._pins.stored.get(self._ledger_id):
            self._stored_ns = seen.time_ns
            self._by_store.vouch(seen.checkpoint.size)
        # The first signature is that of the epoch's key, which is another one each hour.
        self._take_signatures(seen, seen.note.signatures, seen.note.signatures[1:])

    def take_later(self, seen: SeenNote, signature: Signature) -> None:
        """Take one more signature of an earlier note."""
        later = SeenNote(Note(seen.note.text, (signature,)), seen.checkpoint, seen.place, seen.time_ns)
        self._take_signatures(later, (signature,), (signature,))

    def _take_signatures(
        self, seen: SeenNote, signatures: Sequence[Signature], of_identities: Sequence[Signature]
    ) -> None:
        origin, size = seen.checkpoint.origin, seen.checkpoint.size
        if _is_signed(signatures, _named(self._pins.identity, origin)):
            if self._signed is None or seen.place >= self._signed.place:
                self._signed = seen
                self._by_identity.vouch(size)
        elif any(each.name == origin for each in of_identities):
            self._other_place = max(self._other_place, seen.place)
        if _is_signed(signatures, self._pins.known_key) and (
            self._signed_by_known is None or seen.place >= self._signed_by_known.place
        ):
            self._signed_by_known = seen
            self._by_known.vouch(size)

    def _compare_known(self, known: Checkpoint, seen: SeenNote) -> None:
        if known.size != seen.checkpoint.size:
            return
        self._is_note_compared = True
        if known.root == seen.checkpoint.root:
            self._known_ns = seen.time_ns
            self._by_known.vouch(known.size)
        else:
            self._findings.broken(
                "known",
                known.size + 1,
                f"the ledger had another root at {known.size} lines when its note was kept: expected "
                f"{known.root.hex()}, got {seen.checkpoint.root.hex()}",
            )

    def finish(self, last: SeenNote, first_seq: int, epoch_keys: Sequence[VerifierKey], *, is_keyless: bool) -> None:
        """Judge the pins after the ledger's last note, and add what they vouch for to the claims.

        `first_seq` is the number of the ledger's first line. `epoch_keys` are the keys of all known epochs. With
        `is_keyless`, there may have been earlier ones.
        """
        if self._pins.identity is not None:
            self._finish_identity(last)
        if self._pins.known_note is not None:
            self._finish_note(self._pins.known_note, last, first_seq, epoch_keys)
        elif self._pins.known_key is not None and self._pins.known_key.name == last.checkpoint.origin:
            self._finish_key(self._pins.known_key, last, epoch_keys, is_keyless=is_keyless)
        for coverage in (self._by_identity, self._by_known, self._by_store):
            self._claims.vouch(coverage.sizes)

    def _finish_identity(self, last: SeenNote) -> None:
        seen = self._signed
        if seen is None:
            self._findings.broken(
                "identity", None, f"no note of {last.checkpoint.origin} is signed by the key of --key"
            )
            return
        key = _named(self._pins.identity, seen.checkpoint.origin)
        assert key is not None
        try:
            seen.note.verified([key])
        except SignatureInvalid as error:
            self._by_identity.sizes.clear()
            self._findings.broken("identity", seen.place, f"the note in ledger line {seen.place}: {error}")
            return
        behind_ns = last.time_ns - seen.time_ns
        if self._other_place > seen.place:
            self._findings.unproven(
                "identity",
                seen.place,
                f"the key of --key vouches for ledger lines 1 to {seen.checkpoint.size} only: the note in line "
                f"{self._other_place} is signed by another identity; give its key to --key",
            )
        elif behind_ns > _BEHIND_NS:
            self._findings.unproven(
                "identity",
                seen.place,
                f"the newest note that the key of --key signed is {behind_ns / 3600e9:.1f} hours behind the last one",
            )

    def _finish_note(self, known: KnownNote, last: SeenNote, first_seq: int, epoch_keys: Sequence[VerifierKey]) -> None:
        if self._is_note_compared or known.checkpoint.origin != last.checkpoint.origin:
            return
        size, there = known.checkpoint.size, last.checkpoint.size
        if size > there:
            self._findings.broken(
                "known",
                last.place + 1,
                f"the ledger is shorter than when its note was kept: it had {size} lines then, and has {there} under "
                "its last note",
                size,
            )
        elif size >= first_seq:
            self._findings.broken(
                "known", size + 1, f"the ledger has no note at {size} lines, and had one when you kept it"
            )
        else:
            try:
                known.note.verified(epoch_keys)
            except SignatureInvalid:
                self._findings.unproven(
                    "known",
                    None,
                    "the lines that the note of --known covers are gone, and so is the key that signed it",
                )
            else:
                self._by_known.vouch(there)
                self._known_ns = last.time_ns

    def _finish_key(
        self, key: VerifierKey, last: SeenNote, epoch_keys: Sequence[VerifierKey], *, is_keyless: bool
    ) -> None:
        if key in epoch_keys:
            self._by_known.vouch(last.checkpoint.size)
            self._known_ns = last.time_ns
            return
        seen, sizes = self._signed_by_known, dict(self._by_known.sizes)
        self._by_known.sizes.clear()
        if seen is not None:  # the key of an identity
            try:
                seen.note.verified([key])
            except SignatureInvalid as error:
                self._findings.broken("known", seen.place, f"the note in ledger line {seen.place}: {error}")
                return
            self._by_known.sizes.update(sizes)
            self._known_ns = seen.time_ns
        elif is_keyless:
            self._findings.unproven("known", None, "the key of --known may belong to an epoch whose lines are gone")
        else:
            self._findings.broken(
                "known", None, "no epoch of this ledger had the key of --known, and no note is signed by it"
            )


def _named(key: VerifierKey | None, origin: str) -> VerifierKey | None:
    """Return the pinned key under the name that its signatures have here, since only the key itself is pinned."""
    return None if key is None else VerifierKey(origin, key.public)


def _is_signed(signatures: Sequence[Signature], key: VerifierKey | None) -> bool:
    """Return True if one of the signatures says that it is by the key, which is not verified here."""
    return key is not None and any((each.name, each.key_id) == (key.name, key.key_id) for each in signatures)
