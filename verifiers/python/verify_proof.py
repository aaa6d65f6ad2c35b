#!/usr/bin/env python3
"""Check the proof of one audit event with nothing but this file, Python 3.9 or newer, and a public key.

    python3 verify_proof.py --key VKEY PROOF

prints the event and exits with 0 if the log of that key holds it, or says on stderr why not and exits with 1.

VKEY is `<log name>+<key id>+<public key>`, or the same with `<log name>/<directory id>`; it must have reached you
separately from the proof. PROOF is what `otel-audit prove` wrote. The formats are C2SP tlog-proof v1, signed-note v1
and tlog-checkpoint v1; hashes and paths are those of RFC 6962, and the signature is Ed25519 as in RFC 8032.

It is written to be read in one sitting. It shares no code with the package whose proofs it checks.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import re
import sys
import unicodedata
from typing import Any, NoReturn

ENTRY = b'{"system":"ledger","event_type":"audit.ledger",'  # how each entry of a ledger begins
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
MOST_BYTES = 16 << 20
MOST_SIGNATURES = 100
MOST_LEVELS = 64  # of lists and objects in JSON


Signature = tuple[str, bytes, bytes]  # name, key id, and the bytes behind it
Point = tuple[int, int, int, int]  # X, Y, Z, T of RFC 8032: x = X/Z, y = Y/Z, x * y = T/Z


class Refused(Exception):
    """The proof shows nothing. The message says why."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise Refused(message)


# The whole check, from the signature down to the event.


def proven_event(proof: bytes, vkey: str) -> bytes:
    """Return the event that a proof shows to somebody who trusts the key. Raise `Refused` if it shows none."""
    pinned_name, public = parse_vkey(vkey)
    extra, index, path, note = parse_proof(proof)
    text, signatures = parse_note(note)
    origin, size, root = parse_checkpoint(text)

    log_name, slash, directory_id = origin.rpartition("/")
    require(
        slash and log_name and ID.match(directory_id), f"origin: expected <log name>/<directory id>, got {origin!r}"
    )
    require(log_name == pinned_name, f"origin: expected the log {pinned_name!r} of the key, got {log_name!r}")
    check_signatures(text, signatures, origin, public)

    event, head = line_of(extra["event"], "event"), line_of(extra["head"], "head")
    check_inclusion(head, index, size, path, root, "head in the ledger")
    require(head.startswith(ENTRY), f"head: expected an entry of a ledger, got {head[:60]!r}")
    entry = read_object(head, "head")
    require(stream_of(entry, "head") == directory_id, "head: expected a line of the ledger of the origin")
    require(seq_of(entry, "head") == index + 1, "head: expected the number of its leaf, plus one, as its seq")
    content = entry.get("ledger")
    if not isinstance(content, dict):
        raise Refused("head: expected an object under 'ledger'")
    require(content.get("kind") in ("head", "adopt", "end"), "head: expected the kind head, adopt or end")
    stream_size = whole_number(content.get("size"), "size in the head")
    stream_root = hash_of(content.get("root"), "root in the head")

    line = read_object(event, "event")
    stream, seq = stream_of(line, "event"), seq_of(line, "event")
    require(line.get("system") not in ("ledger", "note"), "event: expected no line of a ledger")
    require(stream != directory_id, "event: expected no line of a ledger")
    require(content.get("stream") == stream, "head: expected one of the event's stream")
    require(
        whole_number(extra["index"], "index of the event") == seq - 1, "index of the event: expected its seq less one"
    )
    require(whole_number(extra["size"], "size of the stream") == stream_size, "size of the stream: expected the head's")
    require(isinstance(extra["path"], list), "extra: expected a list under 'path'")
    stream_path = [hash_of(each, "path of the event") for each in extra["path"]]
    check_inclusion(event, seq - 1, stream_size, stream_path, stream_root, "event in its stream")
    return event


def line_of(value: object, what: str) -> bytes:
    if not isinstance(value, str) or "\n" in value:
        raise Refused(f"{what}: expected a line as a text")
    return value.encode()


def stream_of(line: dict[str, Any], what: str) -> str:
    found = line.get("stream_id")
    if not isinstance(found, str) or not ID.match(found):
        raise Refused(f"{what}: expected the id of a stream")
    return found


def seq_of(line: dict[str, Any], what: str) -> int:
    found = whole_number(line.get("seq"), f"seq of the {what}")
    require(found > 0, f"seq of the {what}: expected a number from 1 on")
    return found


# C2SP tlog-proof, signed-note, tlog-checkpoint.


def parse_proof(raw: bytes) -> tuple[dict[str, Any], int, list[bytes], bytes]:
    """Return `extra` as an object, the index of the head, its path, and the note."""
    require(len(raw) <= MOST_BYTES, f"proof: expected at most {MOST_BYTES} bytes")
    before, blank, note = raw.partition(b"\n\n")
    require(blank, "proof: expected an empty line before its note")
    try:
        lines = before.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Refused("proof: expected ASCII before its note") from None
    require(lines[0] == "c2sp.org/tlog-proof@v1", "proof: expected the first line c2sp.org/tlog-proof@v1")
    require(len(lines) > 2, "proof: expected the lines extra and index")
    require(lines[1].startswith("extra "), "proof: expected extra in its second line")
    require(lines[2].startswith("index "), "proof: expected index in its third line")
    extra = read_object(canonical_base64(lines[1][6:], "extra"), "extra")
    require(
        extra.keys() == {"event", "index", "size", "path", "head"},
        "extra: expected exactly the keys event, index, size, path and head",
    )
    return extra, digits(lines[2][6:], "index"), [hash_of(line, "path") for line in lines[3:]], note


def parse_note(raw: bytes) -> tuple[str, list[Signature]]:
    """Return the text of a note, and the name, key id and bytes of each signature."""
    require(len(raw) <= 1 << 20, "note: expected at most a mebibyte")
    require(not re.search(rb"[\x00-\x09\x0b-\x1f]", raw), "note: expected no control characters")
    try:
        whole = raw.decode()
    except UnicodeDecodeError:
        raise Refused("note: expected UTF-8") from None
    text, blank, rest = whole.rpartition("\n\n")
    require(blank and rest.endswith("\n"), "note: expected a text, an empty line, and lines of signatures")
    lines = rest[:-1].split("\n")
    require(len(lines) <= MOST_SIGNATURES, f"note: expected at most {MOST_SIGNATURES} signatures")
    signatures = []
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        require(
            dash == "\u2014" and is_name(name), f"note: expected a signature as dash, name and base64, got {line!r}"
        )
        value = canonical_base64(encoded, "signature")
        require(len(value) > 4, "signature: expected more than 4 bytes")
        signatures.append((name, value[:4], value[4:]))
    return text + "\n", signatures


def parse_checkpoint(text: str) -> tuple[str, int, bytes]:
    """Return origin, size and root. Extension lines are refused."""
    lines = text.split("\n")
    require(len(lines) == 4 and lines[0] and not lines[3], "checkpoint: expected three lines: origin, size, root")
    return lines[0], digits(lines[1], "size in the checkpoint"), hash_of(lines[2], "root in the checkpoint")


def parse_vkey(vkey: str) -> tuple[str, bytes]:
    """Return the log name and the public key of a trusted key."""
    name, _, rest = vkey.partition("+")
    key_id, _, encoded = rest.partition("+")
    require(is_name(name) and encoded, f"key: expected <name>+<key id>+<base64>, got {vkey!r}")
    material = canonical_base64(encoded, "key")
    require(len(material) == 33 and material[0] == 1, "key: expected one for Ed25519, 0x01 and 32 bytes")
    require(
        key_id == key_id_of(name, material[1:]).hex(), f"key: expected the key id of its name and bytes, got {key_id!r}"
    )
    own, _, last = name.rpartition("/")
    return (own if ID.match(last) else name), material[1:]


def check_signatures(text: str, signatures: list[Signature], origin: str, public: bytes) -> None:
    """Return if the key signed the text under the name of the log. Signatures of other keys say nothing."""
    key_id = key_id_of(origin, public)
    own = [value for name, each, value in signatures if (name, each) == (origin, key_id)]
    require(own, f"note: expected a signature of {origin}+{key_id.hex()}, got none")
    for value in own:
        require(ed25519_verifies(public, text.encode(), value), "note: expected a valid signature of the key")


def key_id_of(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]


def is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() or unicodedata.category(c) == "Cc" for c in name)


# Texts that can be written in one way only.


def canonical_base64(text: object, what: str) -> bytes:
    if not isinstance(text, str):
        raise Refused(f"{what}: expected base64 as a text")
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        value = b""
    require(base64.b64encode(value).decode() == text, f"{what}: expected canonical base64")
    return value


def hash_of(text: object, what: str) -> bytes:
    value = canonical_base64(text, what)
    require(len(value) == 32, f"{what}: expected a hash of 32 bytes")
    return value


def digits(text: str, what: str) -> int:
    require(NUMBER.match(text) and int(text) < 2**63, f"{what}: expected digits up to 2^63-1, no leading zero")
    return int(text)


class Digits:
    """A number in JSON, as it is written."""

    def __init__(self, written: str) -> None:
        self.written = written


def whole_number(value: object, what: str) -> int:
    return digits(value.written if isinstance(value, Digits) else "", what)


def read_object(raw: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object that every reader understands alike: each key once, whole characters, not too deep."""

    def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), f"{what}: expected each key once")
        return dict(pairs)

    def no_constant(name: str) -> NoReturn:
        raise Refused(f"{what}: expected JSON, got {name}")

    try:
        value = json.loads(
            raw.decode(),
            object_pairs_hook=each_key_once,
            parse_int=Digits,
            parse_float=Digits,
            parse_constant=no_constant,
        )
    except (ValueError, RecursionError):
        raise Refused(f"{what}: expected JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise Refused(f"{what}: expected a JSON object")
    check_value(value, what, MOST_LEVELS)
    return value


def check_value(value: object, what: str, levels: int) -> None:
    require(levels >= 0, f"{what}: expected at most {MOST_LEVELS} levels")
    if isinstance(value, str):
        require(not any("\ud800" <= c <= "\udfff" for c in value), f"{what}: expected no half surrogate pair")
    elif isinstance(value, list):
        for inner in value:
            check_value(inner, what, levels - 1)
    elif isinstance(value, dict):
        for key, inner in value.items():
            check_value(key, what, levels)
            check_value(inner, what, levels - 1)


# RFC 6962: the leaf of a line is the hash of the SHA-256 of the line. RFC 9162, section 2.1.3.2: the path.


def check_inclusion(line: bytes, index: int, size: int, path: list[bytes], root: bytes, what: str) -> None:
    """Return if the path leads from the line, the leaf of this index, to the root of a tree of this size."""
    require(index < size, f"{what}: expected an index below the size, got {index} of {size}")
    place, last = index, size - 1
    found = hashlib.sha256(b"\x00" + hashlib.sha256(line).digest()).digest()
    for node in path:
        require(last > 0, f"{what}: expected a shorter path")
        if place & 1 or place == last:
            found = hashlib.sha256(b"\x01" + node + found).digest()
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            found = hashlib.sha256(b"\x01" + found + node).digest()
        place, last = place >> 1, last >> 1
    require(last == 0, f"{what}: expected a longer path")
    require(found == root, f"{what}: expected the root {root.hex()}, got {found.hex()}")


# Ed25519. Source: RFC 8032, section 5.1.

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
BASE_Y = 46316835694926478169428394003475163141307993866256225615783033603165251855960
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)


def ed25519_verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return True if [S]B - [k]A is R, byte for byte: what RFC 8032 has as sufficient, and what most libraries do."""
    if len(signature) != 64:
        return False
    s = int.from_bytes(signature[32:], "little")
    point = decompress(public)
    if point is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    x, y, z, t = point
    found = add(multiply(s, (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)), multiply(k, (-x % P, y, z, -t % P)))
    return compress(found) == signature[:32]


def add(one: Point, other: Point) -> Point:
    a = (one[1] - one[0]) * (other[1] - other[0]) % P
    b = (one[1] + one[0]) * (other[1] + other[0]) % P
    c = 2 * one[3] * other[3] * D % P
    d = 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(number: int, point: Point) -> Point:
    total = (0, 1, 1, 0)
    while number:
        if number & 1:
            total = add(total, point)
        point = add(point, point)
        number >>= 1
    return total


def compress(point: Point) -> bytes:
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decompress(encoded: bytes) -> Point | None:
    """Return the point that 32 bytes stand for, or None if they stand for none. Source: RFC 8032, section 5.1.3."""
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P != u:
        x = x * ROOT_OF_MINUS_ONE % P
    if v * x * x % P != u or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the proof of one audit event, and print the event.")
    parser.add_argument("--key", required=True, metavar="VKEY", help="the public key that you trust")
    parser.add_argument("proof", metavar="PROOF", help="what `otel-audit prove` wrote")
    given = parser.parse_args()
    try:
        with open(given.proof, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
        event = proven_event(raw, given.key)
    except (OSError, Refused) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(event + b"\n")
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
