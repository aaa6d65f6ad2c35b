"""Writes trails byte by byte, as docs/integrity.md describes them: honest ones, and what somebody with the keys forges.

It shares the tree, the notes and the keys with the package, and none of the code that writes or reads journals: so it
can also write what our writer never would.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from otel_audit.journal.locks import boot_id
from otel_audit.signing.keys import SigningKey
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.signing.tree import Edge, leaf_hash

__all__ = ["NOW_NS", "Forge", "ForgedLedger", "ForgedStream", "edge_of", "relinked", "root_of"]

NOW_NS = 1_790_000_000 * 10**9
DAY_NS = 86_400 * 10**9


def _id(number: int) -> str:
    return str(uuid.UUID(int=0x0199AABB_CCDD_7EEF_8011_000000000000 + number))


def digests(lines: Sequence[bytes]) -> list[bytes]:
    return [hashlib.sha256(line).digest() for line in lines]


def edge_of(lines: Sequence[bytes]) -> Edge:
    edge = Edge()
    for digest in digests(lines):
        edge.append(leaf_hash(digest))
    return edge


def root_of(lines: Sequence[bytes]) -> str:
    return base64.b64encode(edge_of(lines).root()).decode()


def nodes_of(lines: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(node).decode() for node in edge_of(lines).nodes]


def with_tail(body: Mapping[str, Any], stream_id: str, seq: int, before: bytes | None, time_ns: int) -> bytes:
    """The line of this number behind the line before it."""
    tail: dict[str, Any] = {"time_ns": time_ns, "observed_ns": time_ns, "stream_id": stream_id, "seq": seq}
    if before is not None:
        tail["prev_hash"] = hashlib.sha256(before).hexdigest()
    return json.dumps({**body, **tail}, separators=(",", ":")).encode()


def relinked(lines: Sequence[bytes], stream_id: str) -> list[bytes]:
    """The same lines numbered and chained anew, as somebody does who hides a change."""
    found: list[bytes] = []
    for seq, line in enumerate(lines, 1):
        body = json.loads(line)
        time_ns = body["observed_ns"]
        for name in ("time_ns", "observed_ns", "stream_id", "seq", "prev_hash"):
            body.pop(name, None)
        found.append(with_tail(body, stream_id, seq, found[-1] if found else None, time_ns))
    return found


@dataclass
class ForgedStream:
    """One stream. `lines` are all that it ever had; `segments` says with which of them each segment begins."""

    directory: Path
    stream_id: str
    time_ns: int = NOW_NS
    lines: list[bytes] = field(default_factory=list)
    segments: list[int] = field(default_factory=lambda: [1])
    header: dict[str, Any] = field(default_factory=dict)

    def _append(self, body: Mapping[str, Any]) -> bytes:
        before = self.lines[-1] if self.lines else None
        self.lines.append(with_tail(body, self.stream_id, len(self.lines) + 1, before, self.time_ns))
        return self.lines[-1]

    def begin_segment(self, **content: Any) -> Self:
        """The next line is the header of a new segment."""
        number = len(self.segments)
        if self.lines:
            self.segments.append(len(self.lines) + 1)
            number += 1
        resource = {"service.name": "shop"}
        told = {"format": 1, "stream_id": self.stream_id, "number": number, "resource": resource, **self.header}
        self._append({"system": "segment", "event_type": "audit.segment", "segment": {**told, **content}})
        return self

    def log(self, count: int = 1, **fields: Any) -> Self:
        """The application logs events."""
        if not self.lines:
            self.begin_segment()
        for _ in range(count):
            shop = self.stream_id[-4:]
            self._append({"event_type": "order.placed", "shop": shop, "detail": f"order {len(self.lines)}", **fields})
        return self

    def gap(self) -> None:
        """The writer says that events were lost."""
        self._append({"system": "gap", "event_type": "audit.gap", "gap": {"reasons": {"no room": 3}}})

    def tombstone(self, seq: int) -> bytes:
        """What an erasure makes of a line: its digest, and its own tail."""
        line = self.lines[seq - 1]
        tail = line[line.index(b',"time_ns":') :]
        digest = hashlib.sha256(line).hexdigest().encode()
        start = b'{"system":"erased","event_type":"audit.erased","erased":"%b","pad":"' % digest
        return start + b" " * max(0, len(line) - len(start) - len(tail) - 1) + b'"' + tail

    def damage(self, segment: int, torn: bytes) -> dict[str, Any]:
        """What the next header says of bytes behind the last line of a segment."""
        first = self.segments[segment - 1]
        after = self.segments[segment] if segment < len(self.segments) else len(self.lines) + 1
        offset = sum(len(line) + 1 for line in self.lines[first - 1 : after - 1])
        digest = hashlib.sha256(torn).hexdigest()
        return {"segment": segment, "offset": offset, "length": len(torn), "sha256": digest, "reason": "no space left"}

    def write(self) -> Self:
        """The files hold the lines."""
        for number, first in enumerate(self.segments, 1):
            after = self.segments[number] if number < len(self.segments) else len(self.lines) + 1
            self.write_segment(number, self.lines[first - 1 : after - 1])
        return self

    def write_segment(self, number: int, lines: Sequence[bytes], torn: bytes = b"") -> None:
        self.path(number).write_bytes(b"".join(line + b"\n" for line in lines) + torn)

    def path(self, number: int = 1) -> Path:
        return self.directory / f"{self.stream_id}.{number:08d}.jsonl"

    def head(self, size: int | None = None, *, edge: bool = False, **more: Any) -> dict[str, Any]:
        """What an entry says of the first lines."""
        lines = self.lines[: len(self.lines) if size is None else size]
        content = {
            "stream": self.stream_id,
            "size": len(lines),
            "root": root_of(lines),
            "hash": hashlib.sha256(lines[-1]).hexdigest(),
        }
        return {**content, **({"edge": nodes_of(lines)} if edge else {}), **more}

    def opening(self, **more: Any) -> dict[str, Any]:
        """What an `open` entry says."""
        return {
            "stream": self.stream_id,
            "service": "shop",
            "pid": 4711,
            "boot_id": boot_id(),
            "host_id": "4c4c4544",
            "version": "0.1.0",
            "policy_hash": "",
            "retention_days": 30,
            "retention_bytes": None,
            "durability": "os",
            **more,
        }

    def removal(self, segment: int, **more: Any) -> dict[str, Any]:
        """What a `retain` entry says of one segment."""
        first = self.segments[segment - 1]
        last = self.segments[segment] - 1 if segment < len(self.segments) else len(self.lines)
        return {
            "stream": self.stream_id,
            "segment": segment,
            "first_seq": first,
            "last_seq": last,
            "prev_hash": hashlib.sha256(self.lines[first - 2]).hexdigest() if first > 1 else None,
            "hash": hashlib.sha256(self.lines[last - 1]).hexdigest(),
            "edge": nodes_of(self.lines[:last]),
            "reason": "age",
            "whole": False,
            **more,
        }


class ForgedLedger:
    """The ledger of a directory, with its keys."""

    def __init__(self, directory: Path, ledger_id: str, *, log_name: str, identity: SigningKey | None) -> None:
        self.directory = directory
        self.ledger_id = ledger_id
        self.origin = f"{log_name}/{ledger_id}"
        self.log_name = log_name
        self.epoch_key = SigningKey.generate()
        self.epoch = 1
        self.identity = identity
        self.time_ns = NOW_NS
        self.lines: list[bytes] = []
        self.notes: list[Note] = []
        self.number = 1
        self.pruned_to = 0
        self._next_key: SigningKey | None = None

    def append(self, system: str, content: Mapping[str, Any]) -> None:
        body = {"system": system, "event_type": f"audit.{system}", system: dict(content)}
        before = self.lines[-1] if self.lines else None
        self.lines.append(with_tail(body, self.ledger_id, len(self.lines) + 1, before, self.time_ns))

    def begin(self, former: Mapping[str, Any] | None = None) -> Self:
        """The first turn."""
        self.append("segment", {"format": 1, "directory_id": self.ledger_id, "number": self.number})
        keys = [str(key.verifier(self.origin)) for key in (self.epoch_key, self.identity) if key is not None]
        content = {"log_name": self.log_name, "keys": keys, "host_id": "4c4c4544", "former": former}
        return self.turn(("begin", content))

    def entry(self, kind: str, content: Mapping[str, Any]) -> None:
        self.append("ledger", {"kind": kind, **content})

    def turn(self, *entries: tuple[str, Mapping[str, Any]], after_ns: int = 10**9) -> Self:
        """One turn: entries, and the note over all lines before it."""
        self.time_ns += after_ns
        for kind, content in entries:
            self.entry(kind, content)
        return self.note()

    def note(self) -> Self:
        edge = edge_of(self.lines)
        text = str(Checkpoint(self.origin, len(self.lines), edge.root()))
        note = Note(text).signed(self.epoch_key, self.origin)
        if self.identity is not None:
            note = note.signed(self.identity, self.origin)
        self.notes.append(note)
        self.append("note", {"text": bytes(note).decode()})
        if self._next_key is not None:
            self.epoch_key, self._next_key = self._next_key, None
        return self

    def next_epoch(self, *entries: tuple[str, Mapping[str, Any]]) -> Self:
        """The last turn of an epoch, which announces the key of the next one."""
        self._next_key = SigningKey.generate()
        self.epoch += 1
        content = {"epoch": self.epoch, "vkey": str(self._next_key.verifier(self.origin))}
        return self.turn(*entries, ("key", content))

    def write(self) -> Self:
        path = self.directory / f"ledger.{self.number:08d}.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in self.lines))
        return self

    def begin_segment(self) -> None:
        """The next line is the header of a new segment, with the edge of the tree before it."""
        self.number += 1
        self.pruned_to = len(self.lines)
        told = {"format": 1, "directory_id": self.ledger_id, "number": self.number}
        self.append("segment", {**told, "size": len(self.lines), "edge": nodes_of(self.lines)})

    def retain_own(self) -> Self:
        """Say that the lines before the last segment are removed."""
        gone = self.lines[: self.pruned_to]
        told = {"first_seq": 1, "last_seq": len(gone), "prev_hash": None, "hash": digests(gone)[-1].hex()}
        return self.turn(("retain", {"stream": self.ledger_id, **told, "edge": nodes_of(gone), "reason": "age"}))

    def write_pruned(self, first_key: str) -> None:
        """Only the last segment is there, and what `ledger.keys` says of the first epoch."""
        path = self.directory / f"ledger.{self.number:08d}.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in self.lines[self.pruned_to :]))
        begin = {"epoch": 1, "vkey": first_key, "entry": self.lines[1].decode()}
        sibling = base64.b64encode(leaf_hash(digests(self.lines)[0])).decode()
        record = {**begin, "path": [sibling], "note": bytes(self.notes[0]).decode()}
        (self.directory / "ledger.keys").write_text(json.dumps(record, separators=(",", ":")) + "\n")

    def rewritten(self, change: Callable[[dict[str, Any]], object], *, keys: Sequence[SigningKey]) -> None:
        """Change entries, and chain and sign all that follows anew, with the keys that somebody has stolen.

        A note whose text stays the same keeps its signatures.
        """
        former, self.lines = self.lines, []
        for line in former:
            body = json.loads(line)
            self.time_ns = body["observed_ns"]
            if body["system"] == "ledger":
                change(body["ledger"])
            if body["system"] != "note":
                self.append(body["system"], body[body["system"]])
                continue
            text = str(Checkpoint(self.origin, len(self.lines), edge_of(self.lines).root()))
            if not body["note"]["text"].startswith(text):
                note = Note(text)
                for key in keys:
                    note = note.signed(key, self.origin)
                body["note"] = {"text": bytes(note).decode()}
            self.append("note", body["note"])


class Forge:
    """A directory with a ledger and streams."""

    def __init__(
        self, directory: Path, *, log_name: str = "otel-audit/shop", identity: SigningKey | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.identity = identity
        self._count = 0
        self.streams: list[ForgedStream] = []
        self.ledger = ForgedLedger(directory, _id(0), log_name=log_name, identity=identity)
        self.ledger.begin()

    def stream(self) -> ForgedStream:
        """One more stream, which nothing is known of yet."""
        self._count += 1
        self.streams.append(ForgedStream(self.directory, _id(self._count)))
        return self.streams[-1]

    def honest_stream(self, count: int = 20, *, segments: int = 1, ended: bool = True) -> ForgedStream:
        """A stream that was opened, has a head at each rotation and in the middle of each segment, and ended."""
        stream = self.stream().log(2)
        self.ledger.turn(("open", stream.opening()))
        for number in range(segments):
            if number:
                self.ledger.turn(("head", stream.head(edge=True)))
                stream.begin_segment()
            stream.log(count // 2)
            self.ledger.turn(("head", stream.head()))
            stream.log(count // 2)
        if ended:
            self.ledger.turn(("end", stream.head()))
        return stream

    def write(self) -> Self:
        self.ledger.write()
        for stream in self.streams:
            stream.write()
        return self


def each_line(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of a file."""
    lines = path.read_bytes().split(b"\n")[:-1]
    path.write_bytes(b"".join(line + b"\n" for line in change(lines)))
