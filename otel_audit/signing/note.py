"""Signed notes and checkpoints: the text that says how long a log is and what its root is, and who says so.

Source: C2SP signed-note v1 and tlog-checkpoint v1. Parsers are strict, since what a loose one accepts besides is a
second text for one statement: each note that is read is written again as the same bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from otel_audit.errors import NoteMalformed, SignatureInvalid
from otel_audit.signing.keys import KEY_ID_BYTES, SigningKey, VerifierKey, checked_name, strict_base64
from otel_audit.signing.tree import HASH_BYTES

__all__ = ["Checkpoint", "Note", "Signature"]

# Room for 100 signatures of today's kinds; a signed-note verifier must take 16 and should have a limit.
_MOST_BYTES: Final = 1 << 20
_MOST_SIGNATURES: Final = 100
_CONTROL: Final = re.compile(rb"[\x00-\x09\x0b-\x1f]")
_SIZE: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line of a note: whose it says that it is, and the bytes."""

    name: str
    key_id: bytes
    signature: bytes

    def __str__(self) -> str:
        """Return the line, without its newline."""
        return f"— {self.name} {base64.b64encode(self.key_id + self.signature).decode()}"

    @classmethod
    def parse(cls, line: str) -> Signature:
        """Read a signature line, without its newline.

        Raises:
            NoteMalformed: it is none.
        """
        dash, space, rest = line.partition(" ")
        name, gap, encoded = rest.partition(" ")
        if dash != "—" or not space or not gap:
            raise NoteMalformed(f"signature of a note: expected '— <name> <base64>', got {line[:200]!r}")
        value = strict_base64(encoded, "signature of a note")
        if len(value) <= KEY_ID_BYTES:
            raise NoteMalformed(f"signature of a note: expected more than {KEY_ID_BYTES} bytes, got {len(value)}")
        return cls(checked_name(name), value[:KEY_ID_BYTES], value[KEY_ID_BYTES:])


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures. The text says nothing until a trusted key has verified it: see `verified`."""

    text: str
    signatures: tuple[Signature, ...] = field(default=())

    @classmethod
    def parse(cls, raw: bytes) -> Note:
        """Read a note, with or without signatures that anybody knows.

        Raises:
            NoteMalformed: it is not a note as the specification has it, or larger than one may be.
        """
        if len(raw) > _MOST_BYTES:
            raise NoteMalformed(f"note: expected at most {_MOST_BYTES} bytes, got {len(raw)}")
        if control := _CONTROL.search(raw):
            raise NoteMalformed(
                f"note: expected no control characters, got byte 0x{control[0].hex()} at {control.start()}"
            )
        try:
            whole = raw.decode()
        except UnicodeDecodeError as error:
            raise NoteMalformed(f"note: expected UTF-8, got byte 0x{raw[error.start]:02x} at {error.start}") from None
        text, blank, lines = whole.rpartition("\n\n")
        if not blank or not lines.endswith("\n"):
            raise NoteMalformed(
                "note: expected a text, an empty line and signature lines, each with a newline at its end"
            )
        signatures = lines[:-1].split("\n")
        if len(signatures) > _MOST_SIGNATURES:
            raise NoteMalformed(f"note: expected at most {_MOST_SIGNATURES} signatures, got {len(signatures)}")
        return cls(text + "\n", tuple(map(Signature.parse, signatures)))

    def __bytes__(self) -> bytes:
        """Return the note as it is stored and sent."""
        return (self.text + "\n" + "".join(f"{each}\n" for each in self.signatures)).encode()

    def signed(self, key: SigningKey, name: str) -> Note:
        """Return the same note with one more signature."""
        more = Signature(name, key.verifier(name).key_id, key.sign(self.text.encode()))
        return Note(self.text, (*self.signatures, more))

    def verified(self, keys: Iterable[VerifierKey]) -> tuple[VerifierKey, ...]:
        """Return those of the given, trusted keys that signed the note, in the order of its signatures.

        Signatures of other keys are passed over. Source: signed-note, "Signatures".

        Raises:
            SignatureInvalid: none of the keys signed it, or a signature that says it is of one of them is not.
        """
        known = {(key.name, key.key_id): key for key in keys}
        found: dict[VerifierKey, None] = {}
        for each in self.signatures:
            key = known.get((each.name, each.key_id))
            if key is None:
                continue
            if not key.verifies(self.text.encode(), each.signature):
                raise SignatureInvalid(f"note: expected a signature of {key}, got one that this key did not make")
            found[key] = None
        if not found:
            there = ", ".join(f"{each.name}+{each.key_id.hex()}" for each in self.signatures) or "none"
            wanted = ", ".join(f"{name}+{key_id.hex()}" for name, key_id in known) or "none"
            raise SignatureInvalid(f"note: expected a signature of {wanted}, got {there}")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a note of a log says: the log's origin, its number of leaves, and the root of their tree."""

    origin: str
    size: int
    root: bytes

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read the text of a note.

        Extension lines are refused: nobody who checks a log sees what they are worth.

        Raises:
            NoteMalformed: it is not a checkpoint.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not lines[0]:
            raise NoteMalformed(f"checkpoint: expected three lines: origin, size and root, got {text[:200]!r}")
        if not _SIZE.match(lines[1]):
            raise NoteMalformed(f"checkpoint: expected a size in decimal without leading zeros, got {lines[1][:40]!r}")
        root = strict_base64(lines[2], "root of a checkpoint")
        if len(root) != HASH_BYTES:
            raise NoteMalformed(f"root of a checkpoint: expected {HASH_BYTES} bytes, got {len(root)}")
        return cls(lines[0], int(lines[1]), root)

    def __str__(self) -> str:
        """Return the text to be signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"
