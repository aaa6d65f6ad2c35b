"""What a verifier brings along, so that somebody vouches for a trail who is not on its host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from otel_audit.signing.keys import VerifierKey
from otel_audit.signing.note import Checkpoint, Note

__all__ = ["KnownNote", "Pins"]


@dataclass(frozen=True, slots=True)
class KnownNote:
    """A note that the verifier kept: which ledger it is of, and the size and root that this ledger had then."""

    note: Note
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Pins:
    """What the verifier brought along: a key that outsiders know, and an earlier note or an earlier epoch's key.

    `stored`: by ledger, the newest note that a store has of it.
    """

    identity: VerifierKey | None = None
    known_note: KnownNote | None = None
    known_key: VerifierKey | None = None
    stored: Mapping[str, Checkpoint] = field(default_factory=dict)

    def words(self) -> tuple[str, ...]:
        """Return the names of the options that gave them."""
        known = self.known_note is not None or self.known_key is not None
        return (*(("--key",) if self.identity is not None else ()), *(("--known",) if known else ()))
