"""Make the proof of one event from the lines of its trail, in a journal directory or in a store.

The event is searched for in the streams. It is proven by the first entry of the ledger with a root over its line, and
by the first note over that entry. So the key is that of the epoch in which the event was signed, and the proof is the
same whenever it is made. If the ledger has an identity, the first note that the identity signed is used.

Nothing is locked, and nothing is written. Lines that retention removed before the event are not needed, since the
ledger has the edge of their tree.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

from otel_audit.errors import NoteMalformed, ProofInvalid, ProofUnavailable, SignatureInvalid
from otel_audit.journal.ledger.entries import NOTE, Entry, Header, Kind, SignedNote, Statement, leaf_of, statement
from otel_audit.journal.line import SEGMENT, Line, system_start
from otel_audit.signing.keys import VerifierKey, strict_base64
from otel_audit.signing.note import Note, Signature
from otel_audit.signing.tree import Edge, inclusion_ranges, paths_behind
from otel_audit.verification.proof import EventProof
from otel_audit.verification.trail_lines import Place, TrailLines

__all__ = ["ProofMade", "prove", "prove_all"]

_HEADS: Final = (Kind.HEAD, Kind.ADOPT, Kind.END)
_NOTE: Final = system_start(NOTE)
# In lines that matter for every stream: segment headers, and entries that name keys.
_OF_ALL: Final = (system_start(SEGMENT), b'"kind":"begin"', b'"kind":"key"')
_NOTES_REMEMBERED: Final = 4096  # while waiting for the identity's signature, which follows its note after minutes


@dataclass(frozen=True, slots=True)
class ProofMade:
    """A proof, and the ledger's public keys that signed its note. Checking the proof needs one of them.

    There is no key if the ledger announced it in lines that were removed.
    """

    proof: EventProof
    signers: tuple[VerifierKey, ...]


def prove(place: Place) -> ProofMade:
    """Return the proof of an event. The lines that it stands on are durable.

    Raises:
        ProofUnavailable: there is no proof yet, or no longer; the message says why, and when there will be one.
        OSError: the stream or the ledger cannot be read.
        StoreUnreadable: a log store cannot be queried.
    """
    trail, seq = place.trail, place.line.seq
    try:
        first_seq = next((each.seq for each in trail.lines_behind(place.stream_id, 0)), 1)
    except ProofInvalid:  # the lines are read once more, and give the reason then
        first_seq = 1
    signed_to, why = 0, ""
    ledgers = trail.ledgers()
    starts: list[Edge] = []
    for ledger_id in ledgers:
        search = _Search(place.stream_id, seq, first_seq, starts)
        search.read(trail, ledger_id)
        signed_to, why = max(signed_to, search.signed_to), why or search.why
        if search.head is not None and (found := search.note()) is not None:
            return _made(place, search, search.head, *found, ledger_id)
    raise ProofUnavailable(_not_yet(place, signed_to, why, has_ledger=bool(ledgers)))


def prove_all(places: Sequence[Place]) -> Iterator[tuple[Place, ProofMade | ProofUnavailable]]:
    """Yield the proofs of lines of one stream. `places` are in the order of their numbers.

    Lines that one entry of the ledger covers are proven together, by reading the stream once. If a line has no proof,
    the reason is yielded instead, for that line and all later ones.

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
        paths = paths_behind(edge, size, [each.line.seq - 1 for each in places], _leaves(first, index))
    except ProofInvalid as error:
        yield from ((each, ProofUnavailable(str(error))) for each in places)
        return
    for each in places:
        proof = replace(made.proof, event=each.line.content, path=tuple(paths[each.line.seq - 1]))
        try:
            proof.unsigned()
        except ProofInvalid as error:
            yield each, ProofUnavailable(f"line {each.line.seq} of the stream {each.stream_id}: {error}")
        else:
            yield each, ProofMade(proof, made.signers)


def _made(place: Place, search: _Search, head: Entry, size: int, note: Note, ledger_id: str) -> ProofMade:
    line = place.line
    start = max(search.starts, key=lambda each: each.size, default=None)
    try:
        if start is None:
            raise ProofInvalid("the lines before it were removed, and the ledger has no edge of the tree behind them")
        leaves = _leaves(place, start.size)
        edge = Edge(start.size, start.nodes)
        for _ in range(line.seq - 1 - start.size):
            edge.append(next(leaves))
        path = paths_behind(edge, int(head.content["size"]), [edge.size], leaves)[edge.size]
        head_path = paths_behind(search.edge, size, [search.edge.size], search.leaves)[search.edge.size]
        proof = EventProof(line.content, tuple(path), head.line.content, head.line.seq - 1, tuple(head_path), note)
        proof.unsigned()
        signers = _signers(note, [*search.keys, *search.identities, *place.trail.keys()], search)
    except (ProofInvalid, NoteMalformed, SignatureInvalid, StopIteration) as error:
        why = str(error) or "it is cut off"
        raise ProofUnavailable(
            f"line {line.seq} of the stream {place.stream_id} is signed, and cannot be proven: {why}; "
            "`otel-audit verify` says what is wrong with the trail"
        ) from None
    # Make the lines durable before anybody has the proof, since a loss of power must not remove them afterwards.
    place.trail.sync(ledger_id, head.line.segment, search.segment)
    return ProofMade(proof, signers)


def _signers(note: Note, keys: Sequence[VerifierKey], search: _Search) -> tuple[VerifierKey, ...]:
    """Return the keys that signed a note, or none if the ledger announced them in lines that were removed.

    Raises:
        SignatureInvalid: a signature is false, or its key is not in a ledger of which no line is missing.
    """
    named = {(key.name, key.key_id) for key in keys}
    if search.begins_later and not any((each.name, each.key_id) in named for each in note.signatures):
        return ()
    return note.verified(keys)


def _not_yet(place: Place, signed_to: int, why: str, *, has_ledger: bool) -> str:
    where = f"line {place.line.seq} of the stream {place.stream_id}"
    if not has_ledger:
        return f"{where} cannot be proven: {place.trail.where} has no signed ledger"
    so_far = f"the ledger has signed this stream up to line {signed_to}" if signed_to else "nothing of it is signed yet"
    if why:
        return f"{where} cannot be proven: {why}"
    return f"{where} is not under a signed note yet: {so_far}. {place.trail.words_of_wait(place.stream_id)}"


def _leaves(place: Place, after: int) -> Iterator[bytes]:
    """Yield the leaves of a place's stream after the line with this number, without a hole.

    Raises:
        ProofInvalid: a line is missing.
    """
    for each in place.trail.lines_behind(place.stream_id, after):
        if each.seq != after + 1:
            raise ProofInvalid(f"line {after + 1} is missing")
        after = each.seq
        yield leaf_of(each)


@dataclass(slots=True)
class _Search:
    """Searches one ledger for the first entry that covers a line, and for the notes over that entry.

    `starts` are edges of the stream's tree from which it can be grown up to the line, without the lines before them.
    `edge` is the edge of the ledger's tree before the entry. `leaves` are those of the entry and of later lines.
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
    begins_later: bool = False
    signed_to: int = 0
    why: str = ""
    _unsigned_to: int = 0
    _notes: dict[int, Note] = field(default_factory=dict)
    _vouched: tuple[int, Note] | None = None

    def read(self, trail: TrailLines, ledger_id: str) -> None:
        """Read the ledger, as far as it is needed.

        Raises:
            OSError: the ledger cannot be read.
            StoreUnreadable: a log store cannot be queried.
        """
        if self.first_seq == 1:
            self.starts.append(Edge())
        for line in trail.ledger_lines(ledger_id):
            if not self.segment and line.seq > 1:
                self.begins_later = True
                self._take_removed_begin(trail, ledger_id)
            self.segment = line.segment
            self._take(line)
            if self._is_done():
                return

    def _take_removed_begin(self, trail: TrailLines, ledger_id: str) -> None:
        """Learn the identity from the entry about the ledger's removed lines, which repeats the first entry.

        That entry is later than the one that is searched for. Without it, the first note would be used, even if the
        identity signs only a later one.
        """
        for line in trail.ledger_removals(ledger_id):
            if isinstance(said := statement(line), Entry) and said.content.get("stream") == ledger_id:
                begin = said.content.get("begin")
                if isinstance(begin, Mapping):
                    self._take_begin(begin)
                    return

    def _take_begin(self, content: Mapping[str, Any]) -> None:
        keys = content.get("keys")
        found = _keys(keys if isinstance(keys, list) else [])
        self.keys += found[:1]
        self.identities += found[1:]

    def note(self) -> tuple[int, Note] | None:
        """Return the note for the proof, and its size: the first one that an identity signed, or else the first one."""
        return self._vouched or next(iter(self._notes.items()), None)

    def _is_done(self) -> bool:
        return (
            bool(self._notes)
            and any(self.first_seq <= each.size + 1 for each in self.starts)
            and (not self.identities or self._vouched is not None)
        )

    def _take(self, line: Line) -> None:
        # Most lines belong to other streams, and only their hash is needed.
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
        """Continue with the header's edge, since the segment before it may be removed, or may lack its last turn."""
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
