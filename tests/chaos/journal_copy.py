"""The journal after the chaos, read without the package: every line, and the check of every chain."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.chain_check import SEGMENT, read_streams
from tests.chaos.ledger import FORKED
from tests.servers import Record

__all__ = ["JournalCopy", "read_journal"]

Key = tuple[str, int]


@dataclass(slots=True)
class JournalCopy:
    """What a directory holds.

    `names`: of each event of the application, by stream and number. `instances`: who wrote a stream. `told`: how many
    events each instance says that it lost. `pieces`: ends of writes that a kill or a full disk cut off. `put_back`:
    lines that retention removed, as the archive has them. `ledger`: the lines of the signed ledger, which are those of
    no stream.
    """

    lines: dict[Key, bytes] = field(default_factory=dict)
    names: dict[Key, str] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    ledger: dict[Key, bytes] = field(default_factory=dict)
    pieces: int = 0
    put_back: int = 0

    @property
    def system(self) -> int:
        """How many lines are the journal's own."""
        return len(self.lines) - len(self.names)


def read_journal(directory: Path, scratch: Path, *, writers: Set[str], archive: Iterable[Record] = ()) -> JournalCopy:
    """Every line of every stream; `scratch` gets a copy without the pieces that may be there.

    `writers`: the processes that were started; any other writer of a stream is a forked child of one. `archive`: where
    the beginnings of streams are that retention removed.

    Raises:
        AssertionError: a chain is broken, or a piece of a line is where none may be.
    """
    journal = JournalCopy(pieces=_copy_whole_lines(directory, scratch))
    journal.ledger = _ledger_of(directory)
    ledgers = {stream_id for stream_id, _ in journal.ledger}
    removed = _put_back(scratch, (record for record in archive if json.loads(record.body)["stream_id"] not in ledgers))
    journal.put_back = sum(map(len, removed.values()))
    streams = read_streams(scratch)  # each line has the hash of the one before it and the next number, from 1
    for path in sorted(scratch.iterdir()):
        for line in path.read_bytes().split(b"\n")[:-1]:
            event = json.loads(line)
            journal.lines[event["stream_id"], event["seq"]] = line
    for stream_id, events in streams.items():
        instance = events[0]["segment"]["resource"]["service.instance.id"]
        journal.instances[stream_id] = instance
        writer = instance if instance in writers else FORKED
        for event in events:
            if "system" not in event:
                journal.names[stream_id, event["seq"]] = event["request_id"]
            elif "gap" in event:
                journal.told[writer] += event["gap"]["lines"]
    _check_obituaries(directory / "ledger.jsonl", journal, removed)
    return journal


def _ledger_of(directory: Path) -> dict[Key, bytes]:
    """The lines of every ledger in the directory, without the piece of a turn that was cut off."""
    contents = (path.read_bytes() for path in sorted(directory.glob("ledger.????????.jsonl")))
    lines = (line for content in contents for line in content.split(b"\n")[:-1])
    return {(event["stream_id"], event["seq"]): line for line in lines for event in [json.loads(line)]}


def _put_back(scratch: Path, archive: Iterable[Record]) -> Mapping[str, Mapping[int, str]]:
    """What stands before the first line that is left of a stream, or all of it, in a segment before the others."""
    first: dict[str, int] = {}
    for path in sorted(scratch.iterdir()):
        event = json.loads(path.read_bytes().partition(b"\n")[0])
        first.setdefault(event["stream_id"], event["seq"])
    removed: dict[str, dict[int, str]] = defaultdict(dict)
    for record in archive:
        event = json.loads(record.body)
        stream_id, seq = event["stream_id"], event["seq"]
        if stream_id not in first or seq < first[stream_id]:
            removed[stream_id][seq] = record.body
    for stream_id, lines in removed.items():
        content = "".join(f"{lines[seq]}\n" for seq in sorted(lines))
        (scratch / f"{stream_id}.00000000.jsonl").write_bytes(content.encode())
    return removed


def _check_obituaries(ledger: Path, journal: JournalCopy, removed: Mapping[str, Mapping[int, str]]) -> None:
    """What was removed is told before, in entries that are chained, by number and hash of its last line."""
    told: set[Key] = set()
    before = None
    for content in ledger.read_bytes().split(b"\n")[:-1] if ledger.exists() else ():
        entry = json.loads(content)
        assert entry["prev_hash"] == before, f"{ledger.name}: entry {entry['number']} breaks the chain"
        before = sha256(content).hexdigest()
        if entry["kind"] == "retain":
            key = entry["retain"]["stream_id"], entry["retain"]["last_seq"]
            assert sha256(journal.lines[key]).hexdigest() == entry["retain"]["last_hash"], f"{key} is told wrong"
            told.add(key)
    for path in ledger.parent.glob("ledger.????????.jsonl"):
        for content in path.read_bytes().split(b"\n")[:-1]:
            said = json.loads(content).get("ledger", {})
            if said.get("kind") == "retain":
                key = said["stream"], said["last_seq"]
                assert sha256(journal.lines[key]).hexdigest() == said["hash"], f"{key} is told wrong"
                told.add(key)
    untold = {(stream_id, max(lines)) for stream_id, lines in removed.items()} - told
    assert not untold, f"expected an entry for each removal, got none for {untold}"


def _copy_whole_lines(directory: Path, scratch: Path) -> int:
    scratch.mkdir()
    segments: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(directory.iterdir()):
        if match := SEGMENT.match(path.name):
            segments[match[1]].append(path)
    return sum(_copy_stream(paths, scratch) for paths in segments.values())


def _copy_stream(paths: list[Path], scratch: Path) -> int:
    pieces = 0
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        piece = content[end:]
        if piece and following is not None:
            _must_be_named(following, int(path.name.split(".")[1]), end, piece)
        pieces += bool(piece)
        if end:
            (scratch / path.name).write_bytes(content[:end])
        elif following is not None:
            raise AssertionError(f"{path.name}: expected a line in a segment that another one follows, got none")
    return pieces


def _must_be_named(following: Path, segment: int, offset: int, piece: bytes) -> None:
    """Behind a piece the writer went on, so it knew of it, and its next header says so."""
    header: Mapping[str, Any] = json.loads(following.read_bytes().partition(b"\n")[0])["segment"]
    damage = {name: value for name, value in header.get("damage", {}).items() if name != "reason"}
    expected = {"segment": segment, "offset": offset, "length": len(piece), "sha256": sha256(piece).hexdigest()}
    assert damage == expected, f"{following.name}: expected the header to name the damage {expected}, got {damage}"
