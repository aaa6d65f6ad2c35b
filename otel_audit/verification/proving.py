"""Make the proof of one event from what lies in a journal directory.

The event is looked for in the streams. The first entry of the ledger that names a root over its line is what it is
proven by, and the first note over that entry is what signs it: so the key is that of the epoch in which the event was
signed, and a proof is the same whenever it is made. A ledger with an identity gives the first note that it has signed.

Nothing is locked, and nothing is written. Lines that retention removed before the event are not needed: the ledger has
the edge of the tree behind them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import JournalUnreadable, NoteMalformed, ProofInvalid, ProofUnavailable, SignatureInvalid
from otel_audit.journal.files import StreamFiles, segments_in, sync_file
from otel_audit.journal.ledger.entries import NOTE, Entry, Header, Kind, SignedNote, Statement, leaf_of, statement
from otel_audit.journal.ledger.epochs import EpochKeys
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.line import SEGMENT, Line, system_start
from otel_audit.journal.line_file import blocks, opened
from otel_audit.journal.reader import segment_lines, segment_lines_backwards
from otel_audit.signing.keys import VerifierKey, strict_base64
from otel_audit.signing.note import Note, Signature
from otel_audit.signing.tree import Edge, inclusion_ranges, path_behind, paths_behind
from otel_audit.verification.directory import is_alive
from otel_audit.verification.proof import EventProof

__all__ = ["Place", "ProofMade", "place_at", "places_of", "prove", "prove_all"]

_HEADS: Final = (Kind.HEAD, Kind.ADOPT, Kind.END)
_NOTE: Final = system_start(NOTE)
_REMOVED: Final = b'"kind":"retain"'
# In a line that is of interest for every stream: headers of segments, and what names keys.
_OF_ALL: Final = (system_start(SEGMENT), b'"kind":"begin"', b'"kind":"key"')
_NOTES_REMEMBERED: Final = 4096  # while a signature of the identity is waited for, which is minutes behind its note


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event stands: its line in the files of a stream."""

    files: StreamFiles
    line: Line


@dataclass(frozen=True, slots=True)
class ProofMade:
    """A proof, and the public keys of the ledger that signed its note: whoever checks it needs one of them."""

    proof: EventProof
    signers: tuple[VerifierKey, ...]


def places_of(directory: Path, event_id: str) -> list[Place]:
    """Return each line with this event id. There is one, unless an application has used an id twice.

    Raises:
        OSError: a stream cannot be read.
    """
    wanted = json.dumps(event_id, ensure_ascii=False).encode()
    return [
        Place(StreamFiles(directory, stream_id), line)
        for stream_id, numbers in segments_in(directory).items()
        for number in numbers
        for line in _lines_with(StreamFiles(directory, stream_id), number, wanted)
        if _event_id(line) == event_id
    ]


def place_at(directory: Path, stream_id: str, seq: int) -> Place | None:
    """Return the line of this number in a stream, or None if it is not there.

    Raises:
        OSError: the stream cannot be read.
    """
    files = StreamFiles(directory, stream_id)
    for number in reversed(segments_in(directory).get(stream_id, ())):
        first = _first_in(files, number)
        if first is not None and first <= seq:
            lines = (each for each in segment_lines(files, number) if isinstance(each, Line) and each.seq == seq)
            line = next(lines, None)
            return Place(files, line) if line is not None else None
    return None


def _lines_with(files: StreamFiles, number: int, wanted: bytes) -> Iterator[Line]:
    with contextlib.suppress(FileNotFoundError):  # removed in this moment
        with opened(files.segment(number)) as descriptor:
            if not any(wanted in block.data for block in blocks(descriptor)):
                return
        for each in segment_lines(files, number):
            if isinstance(each, Line) and wanted in each.content:
                yield each


def _event_id(line: Line) -> object:
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        return json.loads(line.content).get("event_id")
    return None


def prove(place: Place) -> ProofMade:
    """Return the proof of an event. What was read for it is durable.

    Raises:
        ProofUnavailable: there is none, yet or any more; it says why, and when there will be one.
        OSError: the stream or the ledger cannot be read.
    """
    files, seq = place.files, place.line.seq
    first_seq = _first_seq(files)
    ledger = LedgerFiles(files.directory)
    signed_to, why = 0, ""
    logs = ledger.logs()
    starts: list[Edge] = []
    for log in logs:
        search = _Search(files.stream_id, seq, first_seq, starts)
        search.read(log)
        signed_to, why = max(signed_to, search.signed_to), why or search.why
        if search.head is not None and (found := search.note()) is not None:
            return _made(place, search, search.head, *found, log)
    raise ProofUnavailable(_not_yet(place, signed_to, why, has_ledger=bool(logs)))


def prove_all(places: Sequence[Place]) -> Iterator[tuple[Place, ProofMade | ProofUnavailable]]:
    """Yield the proof of each of several lines of one stream, in the order of their numbers, which is that of `places`.

    Lines that the same entry of the ledger covers are proven together, by reading the stream once. Where a line has no
    proof, the reason stands in its place, and in that of all lines behind it.

    Raises:
        OSError: the stream or the ledger cannot be read.
    """
    left = list(places)
    while left:
        first = left[0]
        try:
            made = prove(first)
        except ProofUnavailable as error:
            yield from ((each, error) for each in left)
            return
        size = int(json.loads(made.proof.head)["ledger"]["size"])
        yield first, made
        together = [each for each in left[1:] if each.line.seq <= size]
        left = left[1 + len(together) :]
        if together:
            yield from _made_together(first, made, size, together)


def _made_together(
    first: Place, made: ProofMade, size: int, places: Sequence[Place]
) -> Iterator[tuple[Place, ProofMade | ProofUnavailable]]:
    index = first.line.seq - 1
    # The nodes on its left in the path of a leaf are the edge of the tree before it.
    nodes = [
        node for part, node in zip(inclusion_ranges(index, size), made.proof.path, strict=True) if part.start < index
    ]
    try:
        edge = Edge(index, nodes[::-1])
        paths = paths_behind(edge, size, [each.line.seq - 1 for each in places], _leaves(first.files, index))
    except ProofInvalid as error:
        yield from ((each, ProofUnavailable(str(error))) for each in places)
        return
    for each in places:
        proof = replace(made.proof, event=each.line.content, path=tuple(paths[each.line.seq - 1]))
        try:
            proof.unsigned()
        except ProofInvalid as error:
            yield each, ProofUnavailable(f"line {each.line.seq} of the stream {each.files.stream_id}: {error}")
        else:
            yield each, ProofMade(proof, made.signers)


def _made(place: Place, search: _Search, head: Entry, size: int, note: Note, log: LedgerLog) -> ProofMade:
    files, line = place.files, place.line
    start = max(search.starts, key=lambda each: each.size, default=None)
    try:
        if start is None:
            raise ProofInvalid("the lines before it were removed, and the ledger has no edge of the tree behind them")
        leaves = _leaves(files, start.size)
        edge = Edge(start.size, start.nodes)
        for _ in range(line.seq - 1 - start.size):
            edge.append(next(leaves))
        path = path_behind(edge, int(head.content["size"]), leaves)
        head_path = path_behind(search.edge, size, search.leaves)
        proof = EventProof(line.content, tuple(path), head.line.content, head.line.seq - 1, tuple(head_path), note)
        proof.unsigned()
        signers = note.verified([*search.keys, *search.identities, *_archived(files.directory)])
    except (ProofInvalid, NoteMalformed, SignatureInvalid, StopIteration) as error:
        why = str(error) or "it is cut off"
        raise ProofUnavailable(
            f"line {line.seq} of the stream {files.stream_id} is signed, and cannot be proven: {why}; "
            "`otel-audit verify` says what is wrong with the trail"
        ) from None
    for number in range(head.line.segment, search.segment + 1):
        # Durable before anybody has it: after a loss of power the ledger must not say that it never was.
        sync_file(log.segment(number))
    return ProofMade(proof, signers)


def _archived(directory: Path) -> Iterator[VerifierKey]:
    """Yield the keys of the epochs whose announcement retention may have removed from the ledger."""
    with contextlib.suppress(JournalUnreadable):
        for record in EpochKeys.read(directory):
            yield record.vkey


def _not_yet(place: Place, signed_to: int, why: str, *, has_ledger: bool) -> str:
    where = f"line {place.line.seq} of the stream {place.files.stream_id}"
    if not has_ledger:
        return f"{where} cannot be proven: {place.files.directory} has no signed ledger"
    so_far = f"the ledger has signed this stream up to line {signed_to}" if signed_to else "nothing of it is signed yet"
    if why:
        return f"{where} cannot be proven: {why}"
    if is_alive(place.files) is False:
        return (
            f"{where} is not under a signed note yet: {so_far}. Its writer is gone; it will be when the next process "
            "that uses this directory takes the stream over"
        )
    return (
        f"{where} is not under a signed note yet: {so_far}. It will be within OTEL_AUDIT_HEAD_SECONDS of its writer "
        "(300 unless set), after OTEL_AUDIT_HEAD_LINES more lines, or when its writer ends, whatever comes first"
    )


def _first_seq(files: StreamFiles) -> int:
    """Return the number of the first line that is there."""
    for number in files.segments():
        with contextlib.suppress(FileNotFoundError):
            for each in segment_lines(files, number):
                if isinstance(each, Line):
                    return each.seq
    return 1


def _leaves(files: StreamFiles, after: int) -> Iterator[bytes]:
    """Yield the leaves of a stream behind the line of this number, without a hole.

    Raises:
        ProofInvalid: a line is missing.
    """
    numbers = files.segments()
    # Going back from the last one, the first that begins early enough is the one to begin with.
    begin = next((n for n in reversed(numbers) if (first := _first_in(files, n)) is not None and first <= after + 1), 0)
    for number in numbers:
        if number < begin:
            continue
        for each in segment_lines(files, number):
            if not isinstance(each, Line) or each.seq <= after:
                continue
            if each.seq != after + 1:
                raise ProofInvalid(f"line {after + 1} is missing")
            after = each.seq
            yield leaf_of(each)


def _first_in(files: StreamFiles, number: int) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return next((each.seq for each in segment_lines(files, number) if isinstance(each, Line)), None)
    return None


@dataclass(slots=True)
class _Search:
    """Goes through one ledger for the first entry that covers a line, and for the notes over that entry.

    `starts` are edges of the stream's tree from which it can be grown up to the line: the lines before them are not
    needed. `edge` is that of the ledger before the entry, and `leaves` are the entry's own and those behind it.
    """

    stream_id: str
    seq: int
    first_seq: int
    starts: list[Edge]
    head: Entry | None = None
    edge: Edge = field(default_factory=Edge)
    leaves: list[bytes] = field(default_factory=list)
    keys: list[VerifierKey] = field(default_factory=list)
    identities: list[VerifierKey] = field(default_factory=list)
    segment: int = 0
    signed_to: int = 0
    why: str = ""
    _unsigned_to: int = 0
    _notes: dict[int, Note] = field(default_factory=dict)
    _vouched: tuple[int, Note] | None = None

    def read(self, log: LedgerLog) -> None:
        """Read the ledger, as far as it is needed.

        Raises:
            OSError: it cannot be read.
        """
        if self.first_seq == 1:
            self.starts.append(Edge())
        numbers = log.segments()
        self._take_removed_begin(log, numbers)
        for number in numbers:
            self.segment = number
            for line in segment_lines(log, number):
                if isinstance(line, Line):
                    self._take(line)
                    if self._is_done():
                        return

    def _take_removed_begin(self, log: LedgerLog, numbers: Sequence[int]) -> None:
        """Learn the identity from the entry that says that the first lines of the ledger were removed.

        It repeats the first entry, and comes later than what is searched for: without it the first note would be taken,
        though the identity may sign another one only.
        """
        first = next(segment_lines(log, numbers[0]), None) if numbers else None
        if not isinstance(first, Line) or first.seq == 1:
            return
        for number in reversed(numbers):
            for line in segment_lines_backwards(log, number):
                if isinstance(line, Line) and _REMOVED in line.content and isinstance(said := statement(line), Entry):
                    begin = said.content.get("begin")
                    if said.content.get("stream") == line.tail.stream_id and isinstance(begin, Mapping):
                        self._take_begin(begin)
                        return

    def _take_begin(self, content: Mapping[str, Any]) -> None:
        keys = content.get("keys")
        found = _keys(keys if isinstance(keys, list) else [])
        self.keys += found[:1]
        self.identities += found[1:]

    def note(self) -> tuple[int, Note] | None:
        """Return the note to prove by, and its size: the first that an identity has signed, else the first of all."""
        return self._vouched or next(iter(self._notes.items()), None)

    def _is_done(self) -> bool:
        return (
            bool(self._notes)
            and any(self.first_seq <= each.size + 1 for each in self.starts)
            and (not self.identities or self._vouched is not None)
        )

    def _take(self, line: Line) -> None:
        # Most lines are of other streams: nothing of them is needed but their hash.
        if self.head is not None or any(each in line.content for each in (self.stream_id.encode(), *_OF_ALL)):
            self._take_statement(statement(line))
        elif line.content.startswith(_NOTE):
            self.signed_to = self._unsigned_to
        if self.head is not None:
            self.leaves.append(leaf_of(line))
        elif self.edge.size == line.seq - 1:
            self.edge.append(leaf_of(line))

    def _take_statement(self, said: Statement) -> None:
        match said:
            case Header(content=content) if "edge" in content:
                self._begin_segment(content)
            case Entry(kind=Kind.BEGIN, content=content):
                self._take_begin(content)
            case Entry(kind=Kind.KEY, content=content):
                self.keys += _keys([content.get("vkey")])
            case Entry(kind=Kind.SIGNATURE, content=content):
                self._take_signature(content)
            case SignedNote(note=note, checkpoint=checkpoint):
                self.signed_to = self._unsigned_to
                if self.head is not None:
                    self._take_note(checkpoint.size, note)
            case Entry(content=content) if content.get("stream") == self.stream_id:
                self._take_entry(said)

    def _begin_segment(self, content: Mapping[str, Any]) -> None:
        """Go on with what the header says of the lines before it: a segment may be removed, or lack its last turn."""
        size, nodes = content.get("size"), _nodes(content.get("edge"))
        reached = self.edge.size + len(self.leaves)
        if isinstance(size, int) and nodes is not None and size != reached:
            with contextlib.suppress(ProofInvalid):
                self.edge = Edge(size, nodes)
                self.head, self.leaves, self._notes, self._vouched = None, [], {}, None

    def _take_signature(self, content: Mapping[str, Any]) -> None:
        size = content.get("size")
        if isinstance(size, int) and (note := self._notes.get(size)) is not None:
            with contextlib.suppress(NoteMalformed):
                signature = Signature.parse(str(content.get("line")))
                self._take_note(size, Note(note.text, (*note.signatures, signature)))

    def _take_note(self, size: int, note: Note) -> None:
        self._notes[size] = note
        keys = {(key.name, key.key_id) for key in self.identities}
        if self._vouched is None and any((each.name, each.key_id) in keys for each in note.signatures):
            self._vouched = size, note
        if len(self._notes) > _NOTES_REMEMBERED:
            del self._notes[next(islice(self._notes, 1, None))]  # never the first

    def _take_entry(self, entry: Entry) -> None:
        content = entry.content
        size = content.get("last_seq" if entry.kind == Kind.RETAIN else "size")
        if type(size) is not int:
            return
        nodes = _nodes(content.get("edge"))
        if nodes is not None and self.first_seq <= size + 1 <= self.seq:
            with contextlib.suppress(ProofInvalid):
                self.starts.append(Edge(size, nodes))
        if entry.kind not in _HEADS:
            return
        self._unsigned_to = max(self._unsigned_to, size)
        if size >= self.seq and self.head is None:
            if isinstance(content.get("root"), str):
                self.head = entry
            else:
                self.why = f"the ledger has no root of it, since {content.get('why') or 'it could not be built'}"


def _nodes(given: object) -> list[bytes] | None:
    if not isinstance(given, list):
        return None
    with contextlib.suppress(NoteMalformed):
        return [strict_base64(str(each), "edge of a tree") for each in given]
    return None


def _keys(texts: Sequence[object]) -> list[VerifierKey]:
    with contextlib.suppress(NoteMalformed):
        return [VerifierKey.parse(str(each)) for each in texts]
    return []
