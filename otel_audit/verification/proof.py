"""The file that proves one event: written, read strictly, and checked.

Source: C2SP tlog-proof v1 for the file, RFC 6962 for the two trees. The proof has two steps. The note at its end signs
the root of the ledger, whose tree contains the entry `head`. That entry names the root of a stream, whose tree contains
the event. The second step is in the `extra` of the file, which is ours: base64 of a JSON object with exactly the keys
`event`, `index`, `size`, `path` and `head`.

`extra` is not signed, so everything in it is compared with a hash. Any text that two readers could understand
differently is refused: a key that occurs twice or in upper case, a number or base64 that is not in its canonical form,
and half a surrogate pair. `verifiers/` has two independent implementations of the same check.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, NoReturn

from otel_audit.errors import ProofInvalid
from otel_audit.signing.keys import VerifierKey, strict_base64
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.signing.tree import HASH_BYTES, check_inclusion, leaf_hash

__all__ = ["MOST_BYTES", "EventProof", "Proven", "pinned_to"]

_FIRST_LINE: Final = b"c2sp.org/tlog-proof@v1\n"
_EXTRA_KEYS: Final = ("event", "index", "size", "path", "head")
_KINDS: Final = ("head", "adopt", "end")
# The beginning of an entry. An application can choose an event type, but not the beginning of a line.
_ENTRY: Final = b'{"system":"ledger","event_type":"audit.ledger",'
_NUMBER: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_LARGEST: Final = 2**63 - 1
# Enough for the longest line that is read, escaped as JSON and encoded in base64.
MOST_BYTES: Final = 16 << 20
# No event is nested deeper than a third of this, and every JSON reader can read this depth.
_MOST_LEVELS: Final = 64


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof has shown: the line of an event, its place, and the trusted keys that signed it."""

    event: bytes
    stream_id: str
    seq: int
    origin: str
    signers: tuple[VerifierKey, ...]


@dataclass(frozen=True, slots=True)
class EventProof:
    """A proof that a line is in a stream whose root is in a signed ledger.

    `event` and `head` are lines without their newline. `path` leads from the event to the root of the stream at the
    size that the head names, and `head_path` from the head, the leaf `head_index`, to the root in the note.
    """

    event: bytes
    path: tuple[bytes, ...]
    head: bytes
    head_index: int
    head_path: tuple[bytes, ...]
    note: Note

    @classmethod
    def parse(cls, raw: bytes) -> EventProof:
        """Read the file. Nothing in it may be trusted before `check` returns.

        Raises:
            ProofInvalid: it is not a proof of an event.
            NoteMalformed: its base64 or its note does not follow the specification.
        """
        if len(raw) > MOST_BYTES:
            raise ProofInvalid(f"proof: expected at most {MOST_BYTES} bytes, got {len(raw)}")
        extra, head_index, head_path, note = _parts(raw)
        given = _object(_text(strict_base64(extra, "extra of a proof"), "extra of a proof"), "extra of a proof")
        if given.keys() != set(_EXTRA_KEYS):
            raise ProofInvalid(f"extra of a proof: expected the keys {', '.join(_EXTRA_KEYS)}, got {', '.join(given)}")
        proof = cls(
            _line(given["event"], "event"),
            _hashes(given["path"], "path of the event"),
            _line(given["head"], "head"),
            _number(_Digits(head_index), "index of a proof"),
            _hashes(head_path, "path of a proof"),
            Note.parse(note),
        )
        proof._check_numbers(
            _number(given["index"], "index of the event"), _number(given["size"], "size of the stream")
        )
        return proof

    def __bytes__(self) -> bytes:
        """Return the file."""
        extra = {
            "event": self.event.decode(),
            "index": _Line.of(self.event, "event").seq - 1,
            "size": _Head.of(self.head).size,
            "path": [base64.b64encode(each).decode() for each in self.path],
            "head": self.head.decode(),
        }
        text = json.dumps(extra, ensure_ascii=False, separators=(",", ":"))
        lines = [f"extra {base64.b64encode(text.encode()).decode()}", f"index {self.head_index}"]
        lines += [base64.b64encode(each).decode() for each in self.head_path]
        return _FIRST_LINE + "".join(f"{line}\n" for line in lines).encode() + b"\n" + bytes(self.note)

    def check(self, pins: Iterable[VerifierKey]) -> Proven:
        """Return what the proof shows to somebody who trusts these keys, each for every directory of its log name.

        Raises:
            ProofInvalid: it shows nothing.
            NoteMalformed: the signed text is not a checkpoint.
            SignatureInvalid: no trusted key signed it.
        """
        origin = Checkpoint.parse(self.note.text).origin
        keys = [key for pin in pins if (key := pinned_to(pin, origin)) is not None]
        if not keys:
            raise ProofInvalid(f"origin of a proof: expected a log that a key is trusted for, got {origin!r}")
        signers = self.note.verified(keys)
        return replace(self.unsigned(), signers=signers)

    def unsigned(self) -> Proven:
        """Return what the proof shows to somebody who trusts the text of its note already. `signers` is empty.

        Raises:
            ProofInvalid: it shows nothing.
            NoteMalformed: the note is not a checkpoint.
        """
        checkpoint = Checkpoint.parse(self.note.text)
        directory_id = _directory_id(checkpoint.origin)
        event, line, head = _Line.of(self.event, "event"), _Line.of(self.head, "head"), _Head.of(self.head)
        if line.stream_id != directory_id:
            raise ProofInvalid(f"head: expected a line of the ledger {directory_id}, got one of {line.stream_id}")
        if line.seq != self.head_index + 1:
            raise ProofInvalid(f"head: expected line {self.head_index + 1} of the ledger, got line {line.seq}")
        if event.system in ("ledger", "note") or event.stream_id == directory_id:
            raise ProofInvalid(f"event: expected a line of a stream, got one of the ledger {directory_id}")
        if head.stream != event.stream_id:
            raise ProofInvalid(f"head: expected one of the stream {event.stream_id}, got one of {head.stream}")
        check_inclusion(_leaf(self.head), self.head_index, checkpoint.size, self.head_path, checkpoint.root)
        check_inclusion(_leaf(self.event), event.seq - 1, head.size, self.path, head.root)
        return Proven(self.event, event.stream_id, event.seq, checkpoint.origin, ())

    def _check_numbers(self, index: int, size: int) -> None:
        """Compare the numbers in `extra` with the lines."""
        seq, signed = _Line.of(self.event, "event").seq, _Head.of(self.head).size
        if index != seq - 1:
            raise ProofInvalid(f"index of the event: expected {seq - 1}, as it is line {seq}, got {index}")
        if size != signed:
            raise ProofInvalid(f"size of the stream: expected {signed}, as the head says, got {size}")


def pinned_to(pin: VerifierKey, origin: str) -> VerifierKey | None:
    """Return the trusted key under the name of a log, or None if it is not trusted for that log.

    A key is trusted for every directory of its log name: its own name may be that of the log, or of one directory.
    """
    log_name, _, directory_id = origin.rpartition("/")
    own, _, last = pin.name.rpartition("/")
    trusted = own if _ID.match(last) else pin.name
    return VerifierKey(origin, pin.public) if trusted == log_name and _ID.match(directory_id) else None


@dataclass(frozen=True, slots=True)
class _Line:
    """The journal's own keys of a line, as any JSON reader reads them."""

    stream_id: str
    seq: int
    system: object

    @classmethod
    def of(cls, line: bytes, what: str) -> _Line:
        found = _object(_text(line, what), what)
        stream_id = found.get("stream_id")
        if not isinstance(stream_id, str) or not _ID.match(stream_id):
            raise ProofInvalid(f"{what}: expected the id of a stream, got {str(stream_id)[:80]!r}")
        seq = _number(found.get("seq"), f"seq of the {what}")
        if not seq:
            raise ProofInvalid(f"seq of the {what}: expected a number from 1 on, got 0")
        return cls(stream_id, seq, found.get("system"))


@dataclass(frozen=True, slots=True)
class _Head:
    """The claim of a ledger entry about a stream."""

    stream: str
    size: int
    root: bytes

    @classmethod
    def of(cls, line: bytes) -> _Head:
        if not line.startswith(_ENTRY):
            raise ProofInvalid(f"head: expected an entry of a ledger, got {line[:80]!r}")
        found = _object(_text(line, "head"), "head").get("ledger")
        if not isinstance(found, dict) or found.get("kind") not in _KINDS:
            raise ProofInvalid(f"head: expected an entry of the kind {', '.join(_KINDS)}, got {str(found)[:80]!r}")
        stream, root = found.get("stream"), found.get("root")
        if not isinstance(stream, str) or not isinstance(root, str):
            raise ProofInvalid("head: expected the stream and its root as texts, got another or none")
        return cls(stream, _number(found.get("size"), "size in the head"), *_hashes([root], "root in the head"))


@dataclass(frozen=True, slots=True)
class _Digits:
    """A number in JSON, in its written form."""

    written: str


def _parts(raw: bytes) -> tuple[str, str, list[str], bytes]:
    """Return the values of `extra` and `index`, the lines of the path, and the note."""
    if not raw.startswith(_FIRST_LINE):
        raise ProofInvalid(f"proof, line 1: expected {_FIRST_LINE[:-1].decode()!r}, got {raw[:80]!r}")
    before, blank, note = raw.removeprefix(_FIRST_LINE).partition(b"\n\n")
    if not blank:
        raise ProofInvalid("proof: expected an empty line between its path and its note, got none")
    try:
        extra, _, rest = before.decode("ascii").partition("\n")
    except UnicodeDecodeError:
        raise ProofInvalid("proof: expected ASCII before its note, got another character") from None
    index, *path = rest.split("\n")
    return _after("extra ", extra), _after("index ", index), path, note


def _after(name: str, line: str) -> str:
    if not line.startswith(name):
        raise ProofInvalid(f"proof: expected a line that begins with {name!r}, got {line[:80]!r}")
    return line.removeprefix(name)


def _directory_id(origin: str) -> str:
    log_name, slash, directory_id = origin.rpartition("/")
    if not slash or not log_name or not _ID.match(directory_id):
        raise ProofInvalid(f"origin of a proof: expected <log name>/<directory id>, got {origin[:200]!r}")
    return directory_id


def _leaf(line: bytes) -> bytes:
    return leaf_hash(sha256(line).digest())


def _line(value: object, what: str) -> bytes:
    if not isinstance(value, str) or "\n" in value:
        raise ProofInvalid(f"{what}: expected a line as a text, got {str(value)[:80]!r}")
    return value.encode()


def _number(value: object, what: str) -> int:
    written = value.written if isinstance(value, _Digits) else ""
    if not _NUMBER.match(written) or int(written) > _LARGEST:
        raise ProofInvalid(
            f"{what}: expected a whole number up to 2^63-1 without sign and leading zeros, got {str(value)[:60]!r}"
        )
    return int(written)


def _hashes(value: object, what: str) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ProofInvalid(f"{what}: expected a list of texts, got {str(value)[:80]!r}")
    hashes = tuple(strict_base64(each, what) for each in value)
    if wrong := [each for each in hashes if len(each) != HASH_BYTES]:
        raise ProofInvalid(f"{what}: expected hashes of {HASH_BYTES} bytes, got one of {len(wrong[0])}")
    return hashes


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ProofInvalid(f"{what}: expected UTF-8, got byte 0x{raw[error.start]:02x} at {error.start}") from None


def _object(text: str, what: str) -> dict[str, Any]:
    """Return a JSON object that every reader understands alike, with numbers in their written form.

    Source: RFC 8259; RFC 7493 (I-JSON), section 2.
    """

    def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ProofInvalid(f"{what}: expected each key once, got one twice among {', '.join(found)[:200]!r}")
        return found

    def no_constant(name: str) -> NoReturn:
        raise ProofInvalid(f"{what}: expected JSON, got {name}")

    try:
        value = json.loads(
            text, object_pairs_hook=each_key_once, parse_int=_Digits, parse_float=_Digits, parse_constant=no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ProofInvalid(f"{what}: expected JSON, got what cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ProofInvalid(f"{what}: expected a JSON object, got {text[:80]!r}")
    _check_value(value, what, _MOST_LEVELS)
    return value


def _check_value(value: object, what: str, levels: int) -> None:
    """Refuse half of a surrogate pair, which readers understand differently or not at all."""
    if levels < 0:
        raise ProofInvalid(f"{what}: expected at most {_MOST_LEVELS} levels of lists and objects, got more")
    if isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value):
        raise ProofInvalid(f"{what}: expected whole characters, got half of a surrogate pair")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_value(key, what, levels)
            _check_value(inner, what, levels - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, what, levels - 1)
