"""Answer the questions of the page, as values for JSON. Numbers that JavaScript cannot hold exactly are texts.

Texts are as they stand in the trail; the page shows them as text and escapes what is not printable.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from otel_audit._version import __version__
from otel_audit.errors import AuditError
from otel_audit.journal.line import Line, Tail
from otel_audit.moments import moment_ns
from otel_audit.query.columns import COLUMNS
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import WORDS, Filters, Place
from otel_audit.stores.store import Kind
from otel_audit.verification.findings import Class
from otel_audit.verification.proving import prove
from otel_audit.verification.trail_lines import JournalLines
from otel_audit.viewing.indexed import IndexLines
from otel_audit.viewing.standing import WORDS as STANDING_WORDS
from otel_audit.viewing.standing import Standing
from otel_audit.viewing.trail import Stage, ViewedTrail

__all__ = [
    "Asked",
    "Unanswerable",
    "command_to_check",
    "event",
    "events",
    "filters_of",
    "line",
    "proof",
    "state",
    "timeline",
    "values",
    "verification",
]

Asked = Mapping[str, Sequence[str]]
"""The parameters of a request."""

_PAGE: Final = 100
_PAGE_MAX: Final = 500
_TEXT_MAX: Final = 200  # characters of a cell
_FIELD_MAX: Final = 20_000  # of a field of the event that is open
_LINE_MAX: Final = 100_000  # of its line
_BARS: Final = 96
_BARS_MIN: Final = 31
_VALUES: Final = 12
_FINDINGS: Final = 100
_STREAMS: Final = 100
_INT64: Final = range(-(2**63), 2**63)
# The widths of a bar, in seconds: what people count time in.
_STEPS_S: Final = (
    *(10.0**power * unit for power in (-3, -2, -1) for unit in (1, 2, 5)),
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(86_400 * days for days in (1, 2, 7, 14, 28, 91, 182, 364, 3640, 36_400)),
)
_SHORT: Final = (
    *("service", "event_type", "outcome", "result", "actor_id", "actor_name", "on_behalf_of", "tool", "method", "path"),
    *("verb", "target_type", "target", "reason", "detail", "error_type", "system", "event_id", "stream_id"),
)
_ROW: Final = ", ".join(
    (
        *(f"left({name}, {_TEXT_MAX}) AS {name}" for name in _SHORT),
        *("status_code", "duration_ms", "seq", "time_ns::VARCHAR AS time_ns"),
    )
)
_KINDS: Final = {"BIGINT": "{0}::VARCHAR AS {0}", "TIMESTAMP": "{0}::VARCHAR AS {0}", "DOUBLE": "{0}"}
_TEXT: Final = f"left({{0}}::VARCHAR, {_FIELD_MAX}) AS {{0}}"
_WHOLE: Final = ", ".join(
    _KINDS.get(column.kind, _TEXT).format(column.name) for column in COLUMNS if column.name != "line"
)
_ORDER: Final = "time_ns DESC, stream_id DESC, seq DESC"


class Unanswerable(AuditError):
    """The request cannot be understood, or asks for something that does not exist."""


def state(trail: ViewedTrail) -> Mapping[str, Any]:
    """Return the progress of reading and verifying."""
    report = trail.report
    with trail.index() as index:
        unread = list(index.gathered.unread()) if index is not None else []
    return {
        "version": __version__,
        "source": trail.where,
        "kind": str(trail.kind),
        "grown": trail.grown,
        "verified": trail.verified,
        "reading": _stage(trail.reading),
        "verifying": _stage(trail.verifying) if trail.kind is not Kind.EVENT_LOG else None,
        "verdict": str(report.verdict) if report is not None else None,
        "unread": unread,
        "outdated": trail.outdated,
    }


def _stage(stage: Stage) -> Mapping[str, Any]:
    return {"is_done": stage.is_done, "share": stage.share, "error": stage.error, "size_bytes": stage.size_bytes}


def verification(trail: ViewedTrail) -> Mapping[str, Any]:
    """Return the result of the last verification of the whole trail."""
    report = trail.report
    if report is None:
        return {"verdict": None}
    found = [each for weight in Class for each in report.all_findings if each.weight is weight]
    wrong = {each.stream_id for each in found if each.weight is Class.FINDING}
    streams = sorted(report.streams, key=lambda each: (each.stream_id not in wrong, each.state == "removed"))
    return {
        "verdict": str(report.verdict),
        "time_ns": str(report.time_ns),
        "pins": list(report.pins),
        "findings": [each.as_json() for each in found[:_FINDINGS]],
        "more_findings": max(0, len(found) - _FINDINGS),
        "counts": {str(weight): sum(each.weight is weight for each in found) for weight in Class},
        "streams": [each.as_json() for each in streams[:_STREAMS]],
        "more_streams": max(0, len(streams) - _STREAMS),
        "signed": report.signed_lines,
        "vouched": report.vouched_lines,
        "ledgers": [
            {
                "origin": each.origin,
                "vkey": each.vkey,
                "identity": each.identity,
                "note_time_ns": str(each.note_time_ns),
            }
            for each in report.ledgers
            if each.notes
        ],
    }


def events(trail: ViewedTrail, asked: Asked) -> Mapping[str, Any]:
    """Return a page of the events that match the filters, the newest first, and the place after which the next begins.

    Raises:
        Unanswerable: a filter cannot be understood.
        QueryUnanswered: DuckDB cannot answer.
    """
    filters, limit = filters_of(asked), min(_PAGE_MAX, max(1, _whole(asked, "limit", _PAGE)))
    condition, given = filters.where()
    with trail.index() as index:
        if index is None:
            return {"events": [], "next": None}
        # First which ones, by their times: the other columns of the table are read for these alone.
        found = f"SELECT stream_id, seq FROM sought WHERE {condition} ORDER BY {_ORDER} LIMIT {limit + 1}"
        shown = f"SELECT {_ROW}, time_ns AS place_ns FROM sought SEMI JOIN ({found}) USING (stream_id, seq)"
        rows = _rows(
            index, f"SELECT * EXCLUDE (place_ns) FROM ({shown}) ORDER BY place_ns DESC, stream_id DESC, seq DESC", given
        )
    for row in rows:
        row["standing"] = str(_standing(trail, row))
    # A line of a store may lack its time or its place: such ones are the last, and no page begins behind one.
    more = len(rows) > limit and None not in (rows[limit - 1][name] for name in ("time_ns", "stream_id", "seq"))
    last = (
        Place(int(rows[limit - 1]["time_ns"]), rows[limit - 1]["stream_id"], rows[limit - 1]["seq"]) if more else None
    )
    return {"events": rows[:limit], "next": str(last) if last is not None else None}


def timeline(trail: ViewedTrail, asked: Asked) -> Mapping[str, Any]:
    """Return the number of events that match the filters, by outcome and by time.

    Raises:
        Unanswerable: a filter cannot be understood.
        QueryUnanswered: DuckDB cannot answer.
    """
    filters = filters_of(asked, paged=False)
    is_asked, given = Filters({name: filters.words[name] for name in ("outcome", "type")}).where()
    of_all, given_of_all = replace(filters, words={**filters.words, "outcome": ()}).where()
    with trail.index() as index:
        if index is None:
            return {"count": 0, "bars": [], "totals": {}}
        # The trail is searched once. Without the filter by outcome, so that each outcome says what it would show.
        index.keep(
            f"SELECT time_ns, result, {is_asked} AS is_asked FROM sought WHERE {of_all}", [*given, *given_of_all]
        )
        totals = _rows(index, "SELECT result, count(*) AS count FROM kept GROUP BY result")
        found = "FROM kept WHERE is_asked"
        (span,) = _rows(index, f"SELECT min(time_ns) AS first, max(time_ns) AS last, count(*) AS count {found}")
        begin_ns, step_ns = _steps(span["first"] or 0, span["last"] or 0)
        rows = _rows(
            index,
            f"SELECT (time_ns - ({begin_ns})) // {step_ns} AS bar, result, count(*) AS count {found} "
            "AND time_ns IS NOT NULL GROUP BY ALL ORDER BY bar",
        )
    bars: dict[int, dict[str, int]] = {}
    for row in rows:
        bars.setdefault(row["bar"], {})[row["result"]] = row["count"]
    return {
        "count": span["count"],
        "begin_ns": str(begin_ns),
        "step_ns": str(step_ns),
        "length": max([*bars, _BARS_MIN - 1]) + 1,
        "bars": list(bars.items()),
        "totals": {row["result"]: row["count"] for row in totals},
    }


def _steps(first_ns: int, last_ns: int) -> tuple[int, int]:
    """Return the start of the first bar, and the width of all: a usual unit of time if one is large enough."""
    length_ns = last_ns - first_ns
    steps = (round(step * 1e9) for step in _STEPS_S)
    step_ns = next((step for step in steps if length_ns // step < _BARS), length_ns // (_BARS - 1) + 1)
    spare = max(0, _BARS_MIN - length_ns // step_ns - 1) // 2  # or a single event would fill the whole width
    return (first_ns // step_ns - spare) * step_ns, step_ns


def values(trail: ViewedTrail, asked: Asked) -> Mapping[str, Any]:
    """Return the most frequent words for a filter that contain a text.

    Raises:
        Unanswerable: there is no such filter.
        QueryUnanswered: DuckDB cannot answer.
    """
    name, text = _one(asked, "name"), _one(asked, "text")
    if name not in WORDS:
        raise Unanswerable(f"name: expected one of {', '.join(WORDS)}, got {name[:100]!r}")
    with trail.index() as index:
        if index is None:
            return {"values": []}
        columns = " UNION ALL ".join(
            f"SELECT left({column}, {_TEXT_MAX + 1}) AS word FROM sought WHERE system IS NULL" for column in WORDS[name]
        )
        rows = _rows(
            index,
            f"SELECT word FROM ({columns}) WHERE word != '' AND length(word) <= {_TEXT_MAX} "
            f"AND contains(lower(word), lower(?)) GROUP BY word ORDER BY count(*) DESC, word LIMIT {_VALUES}",
            [text],
        )
    return {"values": [row["word"] for row in rows]}


def event(trail: ViewedTrail, asked: Asked) -> Mapping[str, Any]:
    """Return one event: its fields, its line, its place in the chain, and how far it is proven.

    Raises:
        Unanswerable: it is not there.
        QueryUnanswered: DuckDB cannot answer.
    """
    stream_id, seq = _one(asked, "stream"), _whole(asked, "seq")
    with trail.index() as index:
        found = _rows(index, f"SELECT {_WHOLE} FROM sought WHERE stream_id = ? AND seq = ?", [stream_id, seq])
        lines = {
            row["seq"]: row["line"].encode()
            for row in _rows(
                index,
                "SELECT seq, line FROM sought WHERE stream_id = ? AND seq BETWEEN ? AND ?",
                [stream_id, seq - 1, seq + 1],
            )
        }
    if not found or seq not in lines:
        raise Unanswerable(f"expected line {seq} of the stream {stream_id[:100]!r}, got none; it may not be read yet")
    own, standing, report = lines[seq], _standing(trail, found[0]), trail.standings.stream(stream_id)
    return {
        "fields": found[0],
        "line": own[:_LINE_MAX].decode("utf-8", "ignore"),
        "line_bytes": len(own),
        "is_cut": len(own) > _LINE_MAX,
        "standing": str(standing),
        "standing_words": STANDING_WORDS[standing],
        "findings": [each.as_json() for each in trail.standings.findings(stream_id, seq)],
        "stream": report.as_json() if report is not None else None,
        "chain": _chain(lines, seq),
        "can_prove": trail.kind is not Kind.EVENT_LOG,
    }


def _chain(lines: Mapping[int, bytes], seq: int) -> Mapping[str, Any]:
    """Return the hashes that bind a line to its neighbours. Each line names the hash of the line before it."""
    own, after, before = lines[seq], lines.get(seq + 1), lines.get(seq - 1)
    return {
        "hash": Line(own, seq).hash,
        "names": _named(own),
        "before": Line(before, seq - 1).hash if before is not None else None,
        "after_names": _named(after) if after is not None else None,
        "is_last": after is None,
    }


def _named(content: bytes) -> str | None:
    tail = Tail.of(content)
    return tail.prev_hash if tail is not None else None


def line(trail: ViewedTrail, asked: Asked) -> bytes:
    """Return a line, byte for byte.

    Raises:
        Unanswerable: it is not there.
        QueryUnanswered: DuckDB cannot answer.
    """
    stream_id, seq = _one(asked, "stream"), _whole(asked, "seq")
    with trail.index() as index:
        rows = _rows(index, "SELECT line FROM sought WHERE stream_id = ? AND seq = ?", [stream_id, seq])
    if not rows:
        raise Unanswerable(f"expected line {seq} of the stream {stream_id[:100]!r}, got none")
    content: str = rows[0]["line"]
    return content.encode()


def proof(trail: ViewedTrail, asked: Asked) -> Mapping[str, Any]:
    """Return the proof of an event as `otel-audit prove` makes it, in base64, and for each key the command to check it.

    `key_ids` name the keys that signed it if the trail has lost the lines that announced them.

    Raises:
        Unanswerable: it is not there, or its trail has no chain.
        ProofUnavailable: there is no proof yet, or no longer; the message says why.
        QueryUnanswered: DuckDB cannot answer.
        OSError: the journal cannot be read.
    """
    stream_id, seq = _one(asked, "stream"), _whole(asked, "seq")
    if trail.kind is Kind.EVENT_LOG:
        raise Unanswerable("expected a trail with a chain, got a log of events, of which nothing can be proven")
    with trail.index() as index:
        if trail.directory is not None:
            place = JournalLines(trail.directory).place_at(stream_id, seq)
        else:
            place = IndexLines(index, trail.where).place_at(stream_id, seq) if index is not None else None
        if place is None:
            raise Unanswerable(f"expected line {seq} of the stream {stream_id[:100]!r} in {trail.where}, got none")
        made = prove(place)
    name = f"{stream_id}-{seq}.tlog-proof"
    checks = [command_to_check(name, str(key)) for key in made.signers]
    key_ids = [f"{each.name}+{each.key_id.hex()}" for each in made.proof.note.signatures] if not checks else []
    return {
        "name": name,
        "proof": base64.b64encode(bytes(made.proof)).decode(),
        "checks": checks,
        "key_ids": key_ids,
    }


def command_to_check(name: str, key: str) -> str:
    """Return the command that checks a proof in a file, to be pasted into a shell.

    A log is named after its service, so a key may hold quotes, and whatever a shell would run.
    """
    return shlex.join(["otel-audit", "verify", "--proof", name, "--key", key])


def _standing(trail: ViewedTrail, row: Mapping[str, Any]) -> Standing:
    if trail.kind is Kind.EVENT_LOG:
        return Standing.UNCHAINED
    stream_id, seq = row["stream_id"], row["seq"]
    return trail.standings.of(stream_id, int(seq)) if stream_id and seq is not None else Standing.UNPROVEN


def _rows(index: TrailDatabase | None, question: str, given: Sequence[object] = ()) -> list[dict[str, Any]]:
    return [json.loads(each) for each in index.objects(question, given)] if index is not None else []


def filters_of(asked: Asked, *, paged: bool = True) -> Filters:
    """Return the filters in the parameters of a request.

    Raises:
        Unanswerable: one of them cannot be understood.
    """
    words = {name: [word for word in asked.get(name, ()) if word] for name in WORDS}
    before = _one(asked, "before") if paged else ""
    try:
        since_ns, until_ns = (
            moment_ns(_one(asked, name)) if _one(asked, name) else None for name in ("since", "until")
        )
        return Filters(words, since_ns, until_ns, _one(asked, "text"), Place.parse(before) if before else None)
    except (AuditError, OverflowError) as error:
        raise Unanswerable(str(error)) from error


def _one(asked: Asked, name: str) -> str:
    given = asked.get(name, ())
    return given[-1] if given else ""


def _whole(asked: Asked, name: str, default: int | None = None) -> int:
    given = _one(asked, name)
    if not given and default is not None:
        return default
    try:
        number = int(given)
    except ValueError:
        number = -1
    if number not in _INT64 or number < 0:
        raise Unanswerable(f"{name}: expected a whole number from 0 on, got {given[:100]!r}")
    return number
