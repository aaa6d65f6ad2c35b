"""A directory that real journals and ledgers have written, to make proofs of, and who checks these."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otel_audit import ids
from otel_audit.event import AuditEvent
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.ledger.draft import Telling
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.ledger.registrar import head_content
from otel_audit.journal.stream_tree import StreamTree, TreeHead
from otel_audit.verification.proving import ProofMade, prove
from otel_audit.verification.trail_lines import JournalLines
from tests.cli.journals import a_journal
from tests.journal.ledger.telling import a_ledger
from tests.verification.verifiers import of_package, of_python


@dataclass
class Trail:
    """A directory with one stream, whose trees the ledger is told of."""

    directory: Path
    ledger: Ledger
    journal: Journal = field(init=False)

    @classmethod
    def of(cls, directory: Path) -> Trail:
        """A trail that somebody else has written."""
        return cls(directory, a_ledger(directory))

    def __post_init__(self) -> None:
        self.journal = a_journal(self.directory, segment_bytes=4096)

    def log(self, count: int) -> None:
        for number in range(count):
            self.append(f"event {number}", str(ids.new_id()))

    def append(self, detail: str, event_id: str) -> None:
        event = AuditEvent(event_type="http.request", outcome="success", detail=detail, event_id=event_id)
        now_ns = time.time_ns()
        self.journal.append("", event.to_jsonl().encode(), now_ns, now_ns)

    @property
    def files(self) -> StreamFiles:
        (stream_id,) = segments_in(self.directory)
        return StreamFiles(self.directory, stream_id)

    def tree(self) -> TreeHead:
        tree = StreamTree(self.files)
        tree.read()
        return tree.head()

    def head(self, kind: Kind = Kind.HEAD, *, edge: bool = False, **more: Any) -> Telling:
        return kind, {**head_content(self.files.stream_id, self.tree(), edge=edge), **more}

    def tell(self, *entries: Telling) -> None:
        self.ledger.tell(entries or [self.head()])

    def remove_oldest(self, count: int) -> None:
        """Retention removes these many segments, as the ledger says."""
        tree = StreamTree(self.files)
        for number in self.files.segments()[:count]:
            lines = self.files.segment(number).read_bytes().split(b"\n")[:-1]
            tree.grow(json.loads(lines[-1])["seq"])
            told = head_content(self.files.stream_id, tree.head(), edge=True)
            content = {"stream": told["stream"], "segment": number, "last_seq": told["size"], "edge": told["edge"]}
            self.ledger.tell([(Kind.RETAIN, content)])
        for number in self.files.segments()[:count]:
            self.files.segment(number).unlink()

    def events(self) -> dict[str, bytes]:
        """The lines of the application that are there, by event id."""
        raw = b"".join(self.files.segment(number).read_bytes() for number in self.files.segments())
        lines = [line for line in raw.split(b"\n")[:-1] if not line.startswith(b'{"system"')]
        return {json.loads(line)["event_id"]: line for line in lines}


def proof_of(trail: Trail, event_id: str) -> ProofMade:
    (place,) = JournalLines(trail.directory).places(event_id)
    return prove(place)


def shown(made: ProofMade) -> bytes | None:
    """The event that all of its signers prove."""
    raw = bytes(made.proof)
    answers = [verifier(raw, key) for key in made.signers for verifier in (of_package, of_python)]
    assert answers
    assert all(each == answers[0] for each in answers), answers
    return answers[0].event


def heads(made: ProofMade) -> int:
    size: int = json.loads(made.proof.head)["ledger"]["size"]
    return size
