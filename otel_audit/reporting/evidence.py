"""Write one file for an auditor: the requested events, and everything needed to check them without trusting us.

It is a ZIP file. It holds the events as lines of the journal, the whole ledger, whose signed roots cover them, and
proofs that tie the lines to it. It also holds the independent verifiers of `verifiers/`, and a README in plain English.
The same question to the same trail gives the same bytes.

A proof of one line also proves all lines before it in the chain. So each unbroken run of lines gets a proof of its last
line, and each named event gets a proof of its own.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Final
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from otel_audit._version import __version__
from otel_audit.errors import ProofUnavailable
from otel_audit.journal.ledger.entries import Entry, Kind, SignedNote, statement
from otel_audit.journal.line import Line, is_system
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters
from otel_audit.reporting.auditor import readme
from otel_audit.reporting.report import TrailReport
from otel_audit.stores.store import Store
from otel_audit.verification.proving import ProofMade, prove, prove_all
from otel_audit.verification.trail_lines import Place, lines_in

__all__ = ["EVENTS_PARQUET", "RUNS_PROVEN_MAX", "Evidence", "EvidenceMade"]

EVENTS_PARQUET: Final = "events.parquet"
RUNS_PROVEN_MAX: Final = 10_000  # each proof takes some kilobytes
_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the first that a ZIP file can say: the same bytes whenever it is made
_MODE: Final = 0o600
_UNIX: Final = 3
# How an entry begins, as no line of an application can.
_LEDGER_PREFIX: Final = '{"system":"ledger","event_type":"audit.ledger",'
_CHUNK_BYTES: Final = 1 << 20
_VERIFIERS: Final = (
    "README.md",
    "go/build.sh",
    "go/go.mod",
    "go/go.sum",
    "go/main.go",
    "python/verify_evidence.py",
    "python/verify_proof.py",
)
_MAIN: Final = b'''"""Check this evidence with the program that came with it: `python3 -I EVIDENCE.zip --key VKEY`."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "verifiers", "python"))

from verify_evidence import main

sys.exit(main(HERE))
'''


@dataclass(slots=True)
class EvidenceMade:
    """The contents of an evidence file. `unproven` has the ranges of lines without a proof, and the reasons."""

    lines: int = 0
    events: int = 0
    runs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    proofs: list[Mapping[str, Any]] = field(default_factory=list)
    unproven: list[Mapping[str, Any]] = field(default_factory=list)


class Evidence:
    """The evidence for one report. `scratch` is a directory for files that go into the ZIP file.

    The database must be allowed to write to `scratch / EVENTS_PARQUET`.
    """

    def __init__(self, store: Store, database: TrailDatabase, asked: Filters, scratch: Path) -> None:
        self._database = database
        self._asked = asked
        self._scratch = scratch
        self._made = EvidenceMade()
        self._last: deque[tuple[str, int, bytes]] = deque(maxlen=RUNS_PROVEN_MAX)  # the last line of each run
        self._trail = lines_in(store)

    def gather(self, event_ids: Sequence[str], passed: Callable[[int], None] = lambda size: None) -> EvidenceMade:
        """Write everything that comes from the trail to the scratch directory, and return its contents.

        `passed` is called with the bytes of each line and of each proof.

        Raises:
            ProofUnavailable: a named event cannot be proven.
            QueryUnanswered: DuckDB cannot answer.
            OSError: the trail cannot be read, or the disk is full.
        """
        self._write_events(passed)
        self._database.write_parquet(*self._database.select(self._asked))
        self._write_ledger()
        self._write_proofs(event_ids, passed)
        return self._made

    def write(self, file: IO[bytes], report: TrailReport) -> None:
        """Write the ZIP file.

        Raises:
            OSError: it cannot be written.
        """
        contents = self._contents(report)
        (self._scratch / "contents.json").write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n")
        (self._scratch / "README.txt").write_text(readme(contents))
        (self._scratch / "__main__.py").write_bytes(_MAIN)
        verifiers = _verifiers()
        for name in _VERIFIERS:
            target = self._scratch / "verifiers" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(verifiers / name, target)
        names = sorted(
            each.relative_to(self._scratch).as_posix() for each in self._scratch.rglob("*") if each.is_file()
        )
        listed = [f"{_digest(self._scratch / name)}  {name}\n" for name in names]
        (self._scratch / "MANIFEST.sha256").write_text("".join(listed))
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for name in sorted([*names, "MANIFEST.sha256"]):
                about = ZipInfo(name, _TIME)
                about.compress_type, about.create_system, about.external_attr = ZIP_DEFLATED, _UNIX, _MODE << 16
                with open(self._scratch / name, "rb") as source, archive.open(about, "w", force_zip64=True) as target_:
                    shutil.copyfileobj(source, target_, _CHUNK_BYTES)

    def _write_events(self, passed: Callable[[int], None]) -> None:
        """Write the requested lines, by stream and number, with the headers that name their writers."""
        condition, values = self._asked.where()
        of_stream = f"stream_id IN (SELECT stream_id FROM sought WHERE {condition})"
        # The headers of the period, so that the lines of two segments stay chained, and the first one of each stream.
        in_period, times = Filters(
            {"type": ("audit.segment",)}, since_ns=self._asked.since_ns, until_ns=self._asked.until_ns
        ).where()
        headers = f"system = 'segment' AND {of_stream} AND (seq = 1 OR {in_period})"
        question = f"SELECT stream_id, seq, line FROM sought WHERE ({condition}) OR ({headers}) ORDER BY stream_id, seq"
        _, rows = self._database.rows(question, [*values, *values, *times])
        before: tuple[str, int, bytes] | None = None
        with open(self._scratch / "events.jsonl", "wb") as file:
            for stream_id, number, text in rows:
                if stream_id is None or number is None or text is None:
                    continue  # a line of an event log: it has no place in a chain
                seq, line = int(number), text.encode()
                runs = self._made.runs.setdefault(stream_id, [])
                if before is not None and before[:2] == (stream_id, seq - 1):
                    runs[-1] = (runs[-1][0], seq)
                    self._last.pop()
                else:
                    runs.append((seq, seq))
                self._last.append(before := (stream_id, seq, line))
                file.write(line + b"\n")
                passed(len(line) + 1)
                self._made.lines += 1
                self._made.events += not is_system(line)

    def _write_ledger(self) -> None:
        """Write every ledger of the trail up to its last note, that note, and the keys that the ledgers name."""
        keys: dict[str, None] = {}
        keys.update(dict.fromkeys(map(str, self._trail.keys())))
        notes: dict[str, SignedNote] = {}
        turn: list[Line] = []
        with open(self._scratch / "ledger.jsonl", "wb") as file:
            for line in self._ledger_lines():
                turn = [*turn, line] if turn and turn[0].tail.stream_id == line.tail.stream_id else [line]
                match statement(line):
                    case SignedNote() as note:
                        notes[line.tail.stream_id] = note
                        file.writelines(each.content + b"\n" for each in turn)
                        turn = []
                    case Entry(kind=Kind.BEGIN, content=content) if isinstance(named := content.get("keys"), list):
                        keys.update(dict.fromkeys(map(str, named)))
                    case Entry(kind=Kind.KEY, content=content):
                        keys[str(content.get("vkey"))] = None
        (self._scratch / "keys.txt").write_text("".join(f"{key}\n" for key in keys))
        for directory_id, note in notes.items():
            path = self._scratch / "notes" / f"{directory_id}.note"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(note.note))

    def _ledger_lines(self) -> Iterator[Line]:
        of_ledgers = "SELECT stream_id FROM sought WHERE system = 'ledger' AND starts_with(line, ?)"
        question = f"SELECT seq, line FROM sought WHERE stream_id IN ({of_ledgers}) ORDER BY stream_id, seq"
        _, rows = self._database.rows(question, [_LEDGER_PREFIX])
        for seq, line in rows:
            if seq is not None and line is not None:
                yield Line(line.encode(), int(seq))

    def _write_proofs(self, event_ids: Sequence[str], passed: Callable[[int], None]) -> None:
        """Prove each named event, and then the last line of each run if possible."""
        (self._scratch / "proofs").mkdir()
        for event_id in event_ids:
            places = self._trail.places(event_id)
            if not places:
                raise ProofUnavailable(f"expected an event of the id {event_id!r} in {self._trail.where}, got none")
            for place in places:
                passed(self._write_proof(place, prove(place)))
        for stream_id, ends in groupby(self._last, key=itemgetter(0)):
            for place, made in prove_all([Place(self._trail, stream_id, Line(line, seq)) for _, seq, line in ends]):
                if isinstance(made, ProofUnavailable):
                    self._made.unproven.append({"stream_id": stream_id, "seq": place.line.seq, "why": str(made)})
                else:
                    passed(self._write_proof(place, made))

    def _write_proof(self, place: Place, made: ProofMade) -> int:
        """Write a proof unless it exists. Return its size in bytes, or 0."""
        stream_id, seq = place.stream_id, place.line.seq
        name = f"proofs/{stream_id}.{seq}.tlog-proof"
        if (self._scratch / name).exists():
            return 0
        proof = bytes(made.proof)
        (self._scratch / name).write_bytes(proof)
        event_id = json.loads(place.line.content).get("event_id")
        self._made.proofs.append({"file": name, "event_id": event_id, "stream_id": stream_id, "seq": seq})
        return len(proof)

    def _contents(self, report: TrailReport) -> Mapping[str, Any]:
        made, verification = self._made, report.verification
        return {
            "format": 1,
            "made_by": f"otel-audit {__version__}",
            "source": report.source,
            "since_ns": self._asked.since_ns,
            "until_ns": self._asked.until_ns,
            "filters": {name: list(words) for name, words in self._asked.words.items() if words},
            "line_count": made.lines,
            "event_count": made.events,
            "lines": made.runs,
            "proofs": made.proofs,
            "without_proof": made.unproven,
            "runs_without_proof": sum(map(len, made.runs.values())) - len(self._last),
            "damaged": report.gathered.damaged,
            "other_records": report.gathered.others,
            "conclusion": report.conclusion,
            "ledgers": [
                {"origin": each.origin, "key": each.vkey, "identity": each.identity or None}
                for each in (verification.ledgers if verification is not None else ())
            ],
        }


def _verifiers() -> Path:
    """Return the folder of the independent verifiers, in the installed package or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "verifiers"
    return installed if installed.is_dir() else package.parent / "verifiers"


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
