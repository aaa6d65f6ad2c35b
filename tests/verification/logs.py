"""A small stream and a small ledger of real lines, trees and keys, and the proofs that can be made of them.

Whatever stands in them may be a lie: the signatures are made last, so that a proof is only as true as its lines.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from otel_audit.journal.line import digest, system_body
from otel_audit.signing.keys import SigningKey, VerifierKey
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.signing.tree import Edge, leaf_hash, paths_behind
from otel_audit.verification.proof import EventProof

__all__ = [
    "DIRECTORY",
    "EPOCH",
    "IDENTITY",
    "LOG_NAME",
    "STREAM",
    "Log",
    "changed_extra",
    "extra_of",
    "file_of",
    "with_extra",
]

LOG_NAME = "otel-audit/shop"
DIRECTORY = "0198c0de-0000-7000-8000-000000000001"
STREAM = "0198c0de-0000-7000-8000-000000000002"
EPOCH = SigningKey(bytes(range(32)))
IDENTITY = SigningKey(bytes(range(32, 64)))
NOW_NS = 1_790_000_000_000_000_000


@dataclass
class Log:
    """A stream of `events` and a ledger whose entry number `entry_seq` names the root of the stream."""

    events: int = 21
    directory_id: str = DIRECTORY
    origin: str = f"{LOG_NAME}/{DIRECTORY}"
    kind: str = "head"
    content: dict[str, Any] = field(default_factory=dict)  # what the entry says that is not true
    entry_seq: int = 5
    entry_line: Callable[[bytes], bytes] = lambda line: line
    event_line: Callable[[bytes], bytes] = lambda line: line
    signers: Sequence[SigningKey] = (EPOCH, IDENTITY)

    def line(self, seq: int) -> bytes:
        """The event of this number."""
        said = f'event {seq}: "quoted", \\ and schön ✓ <&>\u2028'
        event = {"event_type": "mcp.tools.call", "timestamp": "2026-11-29T01:00:00.000Z", "detail": said}
        text = json.dumps({**event, "attributes": {"seq": seq}}, ensure_ascii=False, separators=(",", ":"))
        return self.event_line(_ended(text[:-1].encode() + _times(seq), STREAM, seq))

    def proof(self, seq: int = 8) -> EventProof:
        """A proof of the event of this number."""
        lines = [self.line(number) for number in range(1, self.events + 1)]
        content = {"stream": STREAM, "size": len(lines), "root": text_of(root_of(lines)), "hash": digest(lines[-1])}
        return self.proof_of(lines[seq - 1], path_to(lines, seq - 1), {**content, **self.content})

    def proof_of(self, event: bytes, path: Sequence[bytes], content: dict[str, Any]) -> EventProof:
        """The proof of an event by an entry of this content."""
        ledger = [_ended(_system("note", {"text": ""}), self.directory_id, n) for n in range(1, 8)]
        entry = _system("ledger", {"kind": self.kind, **content})
        ledger[self.entry_seq - 1] = head = self.entry_line(_ended(entry, self.directory_id, self.entry_seq))
        note = Note(str(Checkpoint(self.origin, len(ledger), root_of(ledger))))
        for key in self.signers:
            note = note.signed(key, self.origin)
        return EventProof(
            event, tuple(path), head, self.entry_seq - 1, tuple(path_to(ledger, self.entry_seq - 1)), note
        )

    def vkey(self, key: SigningKey = IDENTITY) -> VerifierKey:
        """The public half of a key of this log."""
        return key.verifier(self.origin)


def _system(kind: str, content: dict[str, Any]) -> bytes:
    """The same bytes in each run: those of the journal but for the id."""
    return re.sub(rb'"event_id":"[^"]+"', b'"event_id":"%b"' % STREAM.encode(), system_body(kind, content, NOW_NS))


def _times(seq: int) -> bytes:
    return b',"time_ns":%d,"observed_ns":%d' % (NOW_NS + seq, NOW_NS + seq)


def _ended(body: bytes, stream_id: str, seq: int) -> bytes:
    prev = b',"prev_hash":"%b"' % (b"ab" * 32) if seq > 1 else b""
    return b'%b,"stream_id":"%b","seq":%d%b}' % (body, stream_id.encode(), seq, prev)


def leaves_of(lines: Sequence[bytes]) -> list[bytes]:
    return [leaf_hash(bytes.fromhex(digest(line))) for line in lines]


def root_of(lines: Sequence[bytes]) -> bytes:
    edge = Edge()
    for leaf in leaves_of(lines):
        edge.append(leaf)
    return edge.root()


def path_to(lines: Sequence[bytes], index: int) -> list[bytes]:
    return paths_behind(Edge(), len(lines), [index], leaves_of(lines))[index]


def text_of(root: bytes) -> str:
    return base64.b64encode(root).decode()


def file_of(proof: EventProof, seq: int, size: int) -> bytes:
    """The file of a proof, written without a look at its lines."""
    path = [text_of(each) for each in proof.path]
    extra = {"event": proof.event.decode(), "index": seq - 1, "size": size, "path": path, "head": proof.head.decode()}
    head_path = "".join(f"{text_of(each)}\n" for each in proof.head_path)
    begin = f"c2sp.org/tlog-proof@v1\nextra \nindex {proof.head_index}\n{head_path}\n".encode()
    return with_extra(begin + bytes(proof.note), json.dumps(extra, ensure_ascii=False))


def extra_of(proof: bytes) -> dict[str, Any]:
    """What stands in the `extra` of a proof."""
    found: dict[str, Any] = json.loads(base64.b64decode(proof.split(b"\n")[1].removeprefix(b"extra ")))
    return found


def with_extra(proof: bytes, text: str | bytes) -> bytes:
    """The proof with another `extra`."""
    first, _, rest = proof.split(b"\n", 2)
    raw = text if isinstance(text, bytes) else text.encode()
    return b"%b\nextra %b\n%b" % (first, base64.b64encode(raw), rest)


def changed_extra(proof: bytes, **changes: Any) -> bytes:
    """The proof with these values in `extra`."""
    return with_extra(proof, json.dumps({**extra_of(proof), **changes}))
