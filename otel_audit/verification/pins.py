"""The keys and notes that a verifier supplies, so that something outside the host vouches for a trail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from otel_audit.signing.keys import VerifierKey
from otel_audit.signing.note import Checkpoint, Note

__all__ = ["KnownNote", "Pins"]


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
