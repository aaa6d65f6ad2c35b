#!/usr/bin/env python3
"""Check a file of evidence with nothing but Python 3.9 or newer and `verify_proof.py`, which lies beside this file.

    python3 verify_evidence.py [--key VKEY] EVIDENCE

EVIDENCE is the ZIP file that `otel-audit report --evidence` wrote, or the folder that it was unpacked into. Everything
in it is checked: the list of files, the chain of hashes from line to line, the ledger with the roots and signatures of
its notes, and each proof. Every place that does not fit is named, and the exit code is then 1.

VKEY is a public key that reached you separately from EVIDENCE. Without it the keys are those that EVIDENCE itself
names: it can then be shown to fit together, and not by whom it was written.

It is written to be read in one sitting. It shares no code with the package whose evidence it checks.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import stat
import sys
import zipfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which `python3 -I` leaves out

import verify_proof as proofs  # only now can it be found
from verify_proof import Refused

MANIFEST = "MANIFEST.sha256"
CONTENTS = "contents.json"
EVENTS = "events.jsonl"
LEDGER = "ledger.jsonl"
KEYS = "keys.txt"
MOST_REFUSED = 20  # that are printed
MOST_LINE_BYTES = 16 << 20
MOST_TEXT_BYTES = 256 << 20  # of a file that is read at once, such as the ranges of millions of lines
PROOF_NAME = re.compile(r"proofs/(.+)\.([0-9]+)\.tlog-proof\Z")
# Whatever else lies beside the files that are checked would seem to have been checked as well.
FILE_NAME = re.compile(
    r"(?:README\.txt|__main__\.py|MANIFEST\.sha256|contents\.json|(?:events|ledger)\.jsonl|events\.parquet|keys\.txt|"
    r"notes/[^/]+\.note|proofs/[^/]+\.tlog-proof|verifiers/(?:README\.md|go/[a-z.]+|python/verify_[a-z]+\.py))\Z"
)
MOST_PADDING = 200  # times as long as when it is compressed; real lines hold hashes, and reach about ten

Place = tuple[str, int]  # of a line: the id of its stream, and its number in it


class Files:
    """The files of evidence: in its ZIP file, or in the folder that it was unpacked into."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.zip = None if os.path.isdir(path) else zipfile.ZipFile(path)

    def names(self) -> list[str]:
        if self.zip is not None:
            return self.zip.namelist()
        found = [
            os.path.join(folder, each)
            for folder, folders, files in os.walk(self.path)
            for each in [*files, *(each for each in folders if os.path.islink(os.path.join(folder, each)))]
        ]
        names = sorted(os.path.relpath(each, self.path).replace(os.sep, "/") for each in found)
        return [each for each in names if "__pycache__" not in each.split("/")]  # which Python makes of `__main__.py`

    def is_padded(self, name: str) -> bool:
        """Return True for a file that would take hours to read, though it takes a few kilobytes of the ZIP file."""
        about = self.zip.getinfo(name) if self.zip is not None else None
        return about is not None and about.file_size > max(MOST_LINE_BYTES, MOST_PADDING * about.compress_size)

    def open(self, name: str) -> IO[bytes]:
        if self.zip is not None:
            return self.zip.open(name)
        path = os.path.join(self.path, name)
        if not stat.S_ISREG(os.lstat(path).st_mode):  # a pipe would be waited for, and a link leads elsewhere
            raise OSError("no regular file")
        return open(path, "rb")


class Ledger:
    """One log of signed roots: what it says of streams, and how far which key has signed it."""

    def __init__(self, directory_id: str) -> None:
        self.directory_id = directory_id
        self.origin = ""
        self.lines = 0
        self.notes: dict[int, tuple[str, list[proofs.Signature]]] = {}
        self.roots: dict[int, bytes] = {}
        self.heads: list[tuple[int, str, int, str]] = []  # its line; stream, size and hash of the line of that number
        self.epochs: list[tuple[int, str, bytes]] = []  # a line that names an epoch's key, that key, its bytes
        self.vouched = 0  # lines that are under a note of a trusted key


class Check:
    """One check of some evidence."""

    def __init__(self, files: Files, vkey: str | None) -> None:
        self.files = files
        self.vkey = vkey
        self.refused: list[str] = []
        self.ledgers: dict[str, Ledger] = {}
        self.keys: list[str] = []
        self.anchors: dict[Place, tuple[str, str]] = {}  # of a line: its hash, and what says so
        self.lines = self.proven = self.streams = self.holes = self.proofs = 0
        self.unproven: list[str] = []

    def run(self) -> None:
        names = set(self.check_manifest())
        for name in (CONTENTS, EVENTS):
            if name not in names:
                self.refuse(name, "expected this file, got none")
        if LEDGER in names:
            self.check_ledgers()
        if KEYS in names:
            self.keys = self.text_of(KEYS).split()
        for ledger in self.ledgers.values():
            self.check_signatures(ledger)
            self.anchor_heads(ledger)
        for name in sorted(names):
            if name.startswith("notes/"):
                self.attempt(name, self.check_note, name)
            elif name.startswith("proofs/"):
                self.attempt(name, self.check_proof, name)
        if {CONTENTS, EVENTS} <= names:
            self.check_events()

    def refuse(self, where: str, why: str) -> None:
        self.refused.append(f"{where}: {why}")

    def attempt(self, where: str, check: Callable[..., None], *given: Any) -> None:
        try:
            check(*given)
        except (Refused, ValueError) as error:
            self.refuse(where, str(error))

    def text_of(self, name: str) -> str:
        with self.files.open(name) as file:
            raw = file.read(MOST_TEXT_BYTES + 1)
        proofs.require(len(raw) <= MOST_TEXT_BYTES, f"{name}: expected at most {MOST_TEXT_BYTES} bytes")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise Refused(f"{name}: expected UTF-8") from None

    def lines_of(self, name: str) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
        """Yield the place, the bytes and the fields of each line."""
        with self.files.open(name) as file:
            number = 0
            while True:
                raw = file.readline(MOST_LINE_BYTES)
                if not raw:
                    return
                number += 1
                where = f"{name}, line {number}"
                try:
                    proofs.require(raw.endswith(b"\n"), "expected a whole line, got a torn or an overlong one")
                    yield where, raw[:-1], proofs.read_object(raw[:-1], "line")
                except Refused as error:
                    self.refuse(where, str(error))

    # The list of files.

    def check_manifest(self) -> list[str]:
        names = self.files.names()
        for name, times in sorted(Counter(names).items()):
            if times > 1:
                self.refuse(name, "expected a file once, got it twice")
            if not is_inside(name):  # it would be written elsewhere by a program that unpacks without care
                self.refuse(name, "expected a name inside of the evidence, got another")
            elif not FILE_NAME.match(name):
                self.refuse(name, "expected a file of evidence, got another, which nothing here checks")
        if MANIFEST not in names:
            self.refuse(MANIFEST, "expected this file, got none")
            return names
        listed = {}
        for line in self.text_of(MANIFEST).splitlines():
            digest, _, name = line.partition("  ")
            listed[name] = digest
        for name in sorted(listed.keys() - set(names)):
            self.refuse(name, f"expected this file, which {MANIFEST} lists, got none")
        readable = [MANIFEST]
        for name in sorted(set(names) - {MANIFEST}):
            found = hashlib.sha256()
            if self.files.is_padded(name):
                self.refuse(
                    name, f"expected a file that compresses to more than one part in {MOST_PADDING}, got padding"
                )
                continue
            try:
                with self.files.open(name) as file:
                    for block in iter(lambda: file.read(1 << 20), b""):
                        found.update(block)
            except Exception as error:  # of a damaged ZIP file: zlib.error, RuntimeError, struct.error and others
                self.refuse(name, f"expected a file that can be read, got {type(error).__name__}: {error}")
                continue
            readable.append(name)
            if name not in listed:
                self.refuse(name, f"expected a file that {MANIFEST} lists, got another")
            elif found.hexdigest() != listed[name]:
                self.refuse(name, f"expected SHA-256 {listed[name]}, got {found.hexdigest()}")
        return readable

    # The ledger: chain, tree, notes.

    def check_ledgers(self) -> None:
        before: tuple[Place, bytes] | None = None
        nodes: list[tuple[int, bytes]] = []
        for where, raw, line in self.lines_of(LEDGER):
            try:
                place = proofs.stream_of(line, "line"), proofs.seq_of(line, "line")
                if before is None or before[0][0] != place[0]:
                    proofs.require(place[0] not in self.ledgers, "expected the lines of a ledger in a row")
                    self.ledgers[place[0]] = Ledger(place[0])
                    nodes = first_nodes(line, place[1])
            except Refused as error:
                self.refuse(where, str(error))
                continue
            ledger = self.ledgers[place[0]]
            if ledger.lines and before is not None:
                self.attempt(where, check_follows, before, place, line)
            self.attempt(where, self.take, ledger, line, raw, place[1], nodes)
            add_leaf(nodes, raw)
            ledger.lines = place[1]
            before = place, raw

    def take(self, ledger: Ledger, line: dict[str, Any], raw: bytes, seq: int, nodes: list[tuple[int, bytes]]) -> None:
        """Take what a line of a ledger says. `nodes` is the tree of all lines before it."""
        if raw.startswith(b'{"system":"note"'):
            note = line.get("note")
            text, signatures = proofs.parse_note(str(note.get("text") if isinstance(note, dict) else "").encode())
            origin, size, root = proofs.parse_checkpoint(text)
            proofs.require(
                origin.rpartition("/")[2] == ledger.directory_id,
                f"note: expected one of the log {ledger.directory_id}, got one of {origin}",
            )
            proofs.require(size == seq - 1, f"note: expected one of the {seq - 1} lines before it, got {size}")
            found = root_of(nodes)
            proofs.require(root == found, f"note: expected the root {found.hex()} of the lines before it")
            ledger.origin = origin
            ledger.notes[size] = text, signatures
            ledger.roots[size] = root
        elif raw.startswith(proofs.ENTRY):
            said = line.get("ledger")
            if not isinstance(said, dict):
                raise Refused("expected an object under 'ledger'")
            kind = said.get("kind")
            if kind in ("head", "adopt", "end"):
                size = proofs.whole_number(said.get("size"), "size in the head")
                ledger.heads.append((seq, str(said.get("stream")), size, str(said.get("hash"))))
            elif kind in ("begin", "key"):
                keys = said.get("keys") if kind == "begin" else [said.get("vkey")]
                key = str(keys[0]) if isinstance(keys, list) and keys else ""
                ledger.epochs.append((seq, key, proofs.parse_vkey(key)[1]))
            elif kind == "signature":
                size = proofs.whole_number(said.get("size"), "size in the entry")
                if size in ledger.notes:
                    text, signatures = ledger.notes[size]
                    _, more = proofs.parse_note(f"{text}\n{said.get('line')}\n".encode())
                    ledger.notes[size] = text, signatures + more

    def check_signatures(self, ledger: Ledger) -> None:
        """Find how far a ledger is signed by a trusted key: the one given and, if an epoch's, those that it announced.

        Each note is of all lines before it, so the last one of a key says what all of its earlier ones say. The key of
        an identity vouches for no later line: another identity may have replaced it.
        """
        where = f"{LEDGER}, log {ledger.origin or ledger.directory_id}"
        if not ledger.notes:
            return
        last_notes = {each[:2]: size for size in sorted(ledger.notes) for each in ledger.notes[size][1]}
        if self.vkey is None:
            own = [key for key in self.keys if self.has_signed(where, ledger, key, last_notes)]
            last = max(ledger.notes)
            if not any(signed_by(*ledger.notes[last], ledger.origin, key) for key in own):
                self.refuse(where, f"expected a key of {KEYS} that signed its last note, got none")
            else:
                ledger.vouched = last
            return
        ledger.vouched = self.has_signed(where, ledger, self.vkey, last_notes)
        given = proofs.parse_vkey(self.vkey)[1]
        # Only a line that the key itself has signed can say that it is an epoch's.
        is_further = any(public == given and line <= ledger.vouched for line, _, public in ledger.epochs)
        lines = [line for line, _, _ in ledger.epochs]
        while is_further:
            key = ledger.epochs[bisect_right(lines, ledger.vouched) - 1][1]
            size = self.has_signed(where, ledger, key, last_notes)
            is_further = size > ledger.vouched
            ledger.vouched = max(size, ledger.vouched)

    def has_signed(self, where: str, ledger: Ledger, key: str, last_notes: dict[tuple[str, bytes], int]) -> int:
        """Return the size of the last note that a key signed, or 0. `last_notes` has it by the name and id of a key."""
        size = 0
        try:
            log_name, public = proofs.parse_vkey(key)
            size = last_notes.get((ledger.origin, proofs.key_id_of(ledger.origin, public)), 0)
            if not size or ledger.origin.rpartition("/")[0] != log_name:
                return 0
            proofs.check_signatures(*ledger.notes[size], ledger.origin, public)
        except Refused as error:
            self.refuse(f"{where}, note of {size or max(ledger.notes)} lines", str(error))
            return 0
        return size

    def anchor_heads(self, ledger: Ledger) -> None:
        for seq, stream, size, digest in ledger.heads:
            if seq <= ledger.vouched:
                self.anchors[stream, size] = digest, f"{LEDGER}, line {seq} of the log {ledger.origin}"

    # Notes and proofs.

    def check_note(self, name: str) -> None:
        text, _ = proofs.parse_note(self.text_of(name).encode())
        origin, size, _ = proofs.parse_checkpoint(text)
        directory_id = origin.rpartition("/")[2]
        proofs.require(f"notes/{directory_id}.note" == name, f"expected a note of its log, got one of {origin}")
        ledger = self.ledgers.get(directory_id)
        if ledger is None or not ledger.notes:
            raise Refused(f"expected a log in {LEDGER}, got the log {origin}, which is not in it")
        last = max(ledger.notes)
        proofs.require(
            (size, text) == (last, ledger.notes[last][0]), f"expected the last note of {LEDGER}, of {last} lines"
        )

    def check_proof(self, name: str) -> None:
        """Hold a proof against the key of its note, and its note against the ledger."""
        with self.files.open(name) as file:
            raw = file.read(proofs.MOST_BYTES + 1)
        _, _, _, note = proofs.parse_proof(raw)
        text, signatures = proofs.parse_note(note)
        origin, size, root = proofs.parse_checkpoint(text)
        ledger = self.ledgers.get(origin.rpartition("/")[2])
        if ledger is None:
            raise Refused(f"expected a proof of a log in {LEDGER}, got one of {origin}")
        known = ([self.vkey] if self.vkey else []) + self.keys
        key = next((each for each in known if signed_by(text, signatures, origin, each)), None)
        if key is None:
            raise Refused(f"expected a note that a key of {KEYS} signed, got another")
        event = proofs.proven_event(raw, key)
        line = proofs.read_object(event, "event")
        place = proofs.stream_of(line, "event"), proofs.seq_of(line, "event")
        named = PROOF_NAME.match(name)
        expected = f"proofs/{place[0]}.{place[1]}.tlog-proof"
        proofs.require(named and name == expected, f"expected the proof of that line, got one of {words(place)}")
        if size in ledger.roots:
            proofs.require(root == ledger.roots[size], f"expected the root that {LEDGER} has for {size} lines")
        self.proofs += 1
        if key == self.vkey or (size in ledger.roots and size <= ledger.vouched) or self.vkey is None:
            self.anchors[place] = hashlib.sha256(event).hexdigest(), name

    # The events.

    def check_events(self) -> None:
        """Check the lines from one to the next: a line that is proven proves all that it is chained to."""
        try:
            runs = json.loads(self.text_of(CONTENTS))["lines"]
            expected = iter([(stream, first, last) for stream in sorted(runs) for first, last in runs[stream]])
        except (Refused, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self.refuse(CONTENTS, "expected the ranges of lines that are in it, by stream")
            expected = iter([])
        before: tuple[Place, bytes] | None = None
        begin = ""
        open_lines = 0  # of this run, behind the last one that is proven
        run: tuple[str, int, int] | None = None
        for where, raw, line in self.lines_of(EVENTS):
            try:
                place = proofs.stream_of(line, "line"), proofs.seq_of(line, "line")
            except Refused as error:
                self.refuse(where, str(error))
                continue
            follows = before is not None and before[0] == (place[0], place[1] - 1)
            if not follows:
                self.leave(begin, open_lines)
                begin, open_lines = where, 0
                self.streams += before is None or before[0][0] != place[0]
                self.holes += before is not None and before[0][0] == place[0]
                self.end_of_run(run, before, where)
                run = next(expected, None)
                if run is None or run[:2] != place:
                    wanted = words(run[:2]) if run else "no more lines"
                    self.refuse(where, f"expected {wanted}, as {CONTENTS} says, got {words(place)}")
                if before is not None and place <= before[0]:
                    self.refuse(where, f"expected a line behind {words(before[0])}, got {words(place)}")
            elif before is not None:
                self.attempt(where, check_follows, before, place, line)
            self.lines += 1
            open_lines += 1
            open_lines, begin = self.hold_against_anchors(where, place, raw, line, open_lines, begin)
            before = place, raw
        self.leave(begin, open_lines)
        self.end_of_run(run, before, f"{EVENTS}, at its end")
        for left in expected:
            self.refuse(f"{EVENTS}, at its end", f"expected {words(left[:2])}, as {CONTENTS} says, got no more lines")

    def hold_against_anchors(
        self, where: str, place: Place, raw: bytes, line: dict[str, Any], open_lines: int, begin: str
    ) -> tuple[int, str]:
        """Return how many lines of this run are not proven yet, and where they begin."""
        earlier = self.anchors.get((place[0], place[1] - 1))
        if earlier is not None and line.get("prev_hash") != earlier[0]:
            self.refuse(where, f"{words(place)}: expected the hash {earlier[0]} of the line before, from {earlier[1]}")
        anchor = self.anchors.get(place)
        if anchor is None:
            return open_lines, begin or where
        if anchor[0] != hashlib.sha256(raw).hexdigest():
            self.refuse(where, f"{words(place)}: expected a line of the hash {anchor[0]}, from {anchor[1]}")
            return open_lines, begin
        self.proven += open_lines
        return 0, ""

    def leave(self, begin: str, open_lines: int) -> None:
        if open_lines:
            self.unproven.append(f"{begin}: {open_lines} {'line' if open_lines == 1 else 'lines'}")

    def end_of_run(self, run: tuple[str, int, int] | None, before: tuple[Place, bytes] | None, where: str) -> None:
        if run is not None and before is not None and before[0] != (run[0], run[2]):
            next_line = words((before[0][0], before[0][1] + 1))
            self.refuse(where, f"expected {next_line} here, as {CONTENTS} says; it is not there")


def is_inside(name: str) -> bool:
    """Return True for a name that every system takes for one of a file below the folder it is unpacked into."""
    return not re.search(r"[\\:\x00-\x1f]", name) and not {"", ".", ".."} & set(name.split("/"))


def words(place: Place) -> str:
    return f"line {place[1]} of the stream {place[0]}"


def check_follows(before: tuple[Place, bytes], place: Place, line: dict[str, Any]) -> None:
    """Return if a line is the next one, and has the hash of the line before it."""
    (stream, seq), raw = before
    proofs.require(place == (stream, seq + 1), f"expected {words((stream, seq + 1))}, got {words(place)}")
    found = hashlib.sha256(raw).hexdigest()
    proofs.require(
        line.get("prev_hash") == found, f"{words(place)}: expected the hash of the line before it, which is {found}"
    )


def signed_by(text: str, signatures: list[proofs.Signature], origin: str, key: str) -> bool:
    """Return True if there is a signature that names this key. Whether it is one is checked elsewhere."""
    log_name, public = proofs.parse_vkey(key)
    key_id = proofs.key_id_of(origin, public)
    return origin.rpartition("/")[0] == log_name and any(each[:2] == (origin, key_id) for each in signatures)


# The tree of RFC 6962, grown leaf by leaf: the roots of its perfect subtrees, each with its size.


def first_nodes(line: dict[str, Any], seq: int) -> list[tuple[int, bytes]]:
    """Return the tree of the lines before the first one that is there, as its header has it; a note is held to it."""
    said = line.get("segment")
    if seq == 1 or not isinstance(said, dict):
        proofs.require(seq == 1, "expected a ledger that begins with line 1, or with the header of a segment")
        return []
    size, edge = proofs.whole_number(said.get("size"), "size of the tree"), said.get("edge")
    proofs.require(size == seq - 1 and isinstance(edge, list), f"expected the tree of {seq - 1} lines, got another")
    sizes = [1 << bit for bit in reversed(range(size.bit_length())) if size >> bit & 1]
    hashes = [proofs.hash_of(each, "edge") for each in edge or ()]
    proofs.require(len(sizes) == len(hashes), "expected a node for each perfect subtree")
    return [(sizes[number], each) for number, each in enumerate(hashes)]


def add_leaf(nodes: list[tuple[int, bytes]], line: bytes) -> None:
    size, node = 1, hashlib.sha256(b"\x00" + hashlib.sha256(line).digest()).digest()
    while nodes and nodes[-1][0] == size:
        size, node = 2 * size, hashlib.sha256(b"\x01" + nodes.pop()[1] + node).digest()
    nodes.append((size, node))


def root_of(nodes: list[tuple[int, bytes]]) -> bytes:
    if not nodes:
        return hashlib.sha256().digest()
    found = nodes[-1][1]
    for _, node in reversed(nodes[:-1]):
        found = hashlib.sha256(b"\x01" + node + found).digest()
    return found


def shown(text: str) -> str:
    """Return a text in which no character can turn round or hide what stands beside it."""
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in text)


def number(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def say(check: Check) -> int:
    """Print what was found; return the exit code."""
    for each in check.refused[:MOST_REFUSED]:
        print(f"REFUSED: {shown(each)}")
    if len(check.refused) > MOST_REFUSED:
        print(f"REFUSED: and {len(check.refused) - MOST_REFUSED} more")
    if check.refused:
        return 1
    print(f"{number(check.lines, 'line')} of {number(check.streams, 'stream')}; {number(check.proofs, 'proof')}")
    for ledger in check.ledgers.values():
        lines = number(ledger.lines, "line")
        print(f"the log {shown(ledger.origin)}: {lines}, {ledger.vouched} of them under a signed note")
    if check.holes:
        print(f"{check.holes} times lines between two of a stream are not in it")
    for each in check.unproven[:MOST_REFUSED]:
        print(f"not proven: {shown(each)}")
    if len(check.unproven) > MOST_REFUSED:
        print(f"not proven: and {len(check.unproven) - MOST_REFUSED} more pieces")
    if check.vkey is None:
        print(
            f"CONSISTENT: {check.proven} of {check.lines} lines are as the keys in it signed them. Nothing here shows "
            "whose keys these are: give --key VKEY with a key that reached you separately"
        )
        return 0
    if check.proven < check.lines or not check.lines:
        print(f"NOT ALL PROVEN: the key vouches for {check.proven} of {check.lines} lines")
        return 1
    print(f"PROVEN: the key vouches for all {check.lines} lines")
    return 0


def main(evidence: str | None = None) -> int:
    """Check the evidence that is named on the command line, or the given one."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(description="Check a file of evidence, and name each place that does not fit.")
    parser.add_argument("--key", metavar="VKEY", help="a public key that you trust")
    parser.add_argument(
        "evidence", metavar="EVIDENCE", nargs="?" if evidence else None, help="the ZIP file, or its folder"
    )
    given = parser.parse_args()
    path: str = given.evidence or evidence or ""
    try:
        if given.key is not None:
            proofs.parse_vkey(given.key)
        check = Check(Files(path), given.key)
        check.run()
    except Refused as error:
        print(f"REFUSED: {shown(str(error))}")
        return 1
    except Exception as error:  # of a damaged ZIP file: zlib.error, RuntimeError, struct.error and others
        print(f"REFUSED: expected evidence that can be read, got {type(error).__name__}: {shown(str(error))}")
        return 1
    return say(check)


if __name__ == "__main__":
    sys.exit(main())
