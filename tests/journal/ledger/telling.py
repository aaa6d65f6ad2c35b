"""How the tests take turns at a ledger, and how a stranger would check what is in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.locks import FileLock, boot_id, host_id
from otel_audit.signing.keys import VerifierKey
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.signing.tree import Edge, leaf_hash

__all__ = ["Checked", "Clock", "a_ledger", "checked", "held_turn", "last_checked", "segments"]

LOG_NAME = "otel-audit/shop"


class Clock:
    """Stands for the wall clock. `now_ns` is what it says."""

    def __init__(self, now_ns: int = 1_800_000_000 * 10**9) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * 10**9)


def described() -> dict[str, Any]:
    return {
        "resource": {"service.name": "shop"},
        "scope": {"name": "otel_audit", "version": "0"},
        "host_id": host_id(),
        "boot_id": boot_id(),
    }


def a_ledger(directory: Path, **options: Any) -> Ledger:
    return Ledger(directory, LOG_NAME, described, **options)


def held_turn(directory: Path) -> FileLock:
    """Take the turn at the ledger, as another process would, and keep it."""
    held = FileLock.acquire(LedgerFiles(directory).lock)
    assert held is not None
    return held


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("ledger.????????.jsonl"))


@dataclass
class Checked:
    """One ledger that was found whole: chain, roots and signatures are right. `lost`: lines that damage explains."""

    directory_id: str
    entries: list[dict[str, Any]] = field(default_factory=list)
    notes: list[Checkpoint] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    headers: list[Mapping[str, Any]] = field(default_factory=list)
    unsigned: int = 0

    @property
    def kinds(self) -> list[str]:
        return [entry["kind"] for entry in self.entries]

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["kind"] == kind]


def checked(directory: Path) -> list[Checked]:
    """The ledgers of a directory, checked without the code that wrote them: only hashes and signatures are shared."""
    found: list[Checked] = []
    for path in segments(directory):
        raw = path.read_bytes()
        lines = raw.split(b"\n")[:-1]
        if not lines:
            continue
        own = json.loads(lines[0])["stream_id"]
        if not found or found[-1].directory_id != own:
            found.append(Checked(own))
            state: dict[str, Any] = {"edge": Edge(), "prev": "", "key": None}
        _check(found[-1], state, lines, path.name)
    return found


def last_checked(directory: Path) -> Checked:
    return checked(directory)[-1]


def _check(ledger: Checked, state: dict[str, Any], lines: Sequence[bytes], name: str) -> None:
    for number, line in enumerate(lines):
        stored = json.loads(line)
        where = f"{name}, line {number + 1}"
        if number == 0:
            assert stored["system"] == "segment", where
            header = stored["segment"]
            ledger.headers.append(header)
            if header["size"] != state["edge"].size or stored.get("prev_hash", "") != state["prev"]:
                assert "damage" in header, f"{where}: lines are gone, and nothing says why"
                state["edge"] = Edge(header["size"], [base64.b64decode(node) for node in header["edge"]])
                state["prev"] = stored["prev_hash"]
        assert stored["stream_id"] == ledger.directory_id, where
        assert stored["seq"] == state["edge"].size + 1, where
        assert stored.get("prev_hash", "") == state["prev"], where
        if stored["system"] == "note":
            _check_note(ledger, state, stored["note"]["text"], where)
        elif stored["system"] == "ledger":
            ledger.unsigned += 1
            ledger.entries.append({**stored["ledger"], "time_ns": stored["time_ns"]})
        state["edge"].append(leaf_hash(sha256(line).digest()))
        state["prev"] = sha256(line).hexdigest()


def _check_note(ledger: Checked, state: dict[str, Any], text: str, where: str) -> None:
    note = Note.parse(text.encode())
    checkpoint = Checkpoint.parse(note.text)
    assert (checkpoint.size, checkpoint.root) == (state["edge"].size, state["edge"].root()), where
    if not ledger.keys:
        ledger.keys.append(ledger.entries[0]["keys"][0])
        assert ledger.entries[0]["kind"] == "begin", where
    note.verified([VerifierKey.parse(ledger.keys[-1])])
    ledger.notes.append(checkpoint)
    ledger.unsigned = 0
    if ledger.kinds[-1:] == ["key"] and ledger.entries[-1]["vkey"] not in ledger.keys:
        ledger.keys.append(ledger.entries[-1]["vkey"])
        assert ledger.entries[-1]["epoch"] == len(ledger.keys), where
