"""One HTML file of a report, for a browser, a screen reader or paper. It loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from otel_audit._version import __version__
from otel_audit.event_schema import Outcome
from otel_audit.reporting.activity import PRIVILEGED, Activity, Table
from otel_audit.reporting.markup import Markup, document, element, joined, lines
from otel_audit.reporting.report import LIMITS, TrailReport
from otel_audit.reporting.stylesheet import POLICY, STYLESHEET
from otel_audit.verification.findings import Class, LedgerReport, Report

__all__ = ["page_of"]

_TEXT_MAX: Final = 200  # characters of a cell
_LONG_MAX: Final = 2000  # of a sentence, or of a key, which is of use only as a whole
_NOTE_MAX: Final = 20_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECTIONS: Final = {
    "happened": "What happened",
    "denied": "Denied",
    "privileged": "Privileged",
    "logins": "Failed logins",
    "new": "New actors",
    "coverage": "Coverage",
    "verification": "Verification",
    "keys": "Keys and notes",
    "limits": "Limits of this report",
}
_CLASSES: Final = {
    Class.FINDING: "Wrong",
    Class.UNPROVEN: "Not proven",
    Class.NOTICE: "Worth knowing",
}

Row = Mapping[str, Any]


def page_of(report: TrailReport, *, rows_max: int) -> str:
    """Return the page. Tables about the verification have at most `rows_max` rows, like the other tables."""
    activity, verification = report.activity, report.verification
    title = f"Audit report: {_short(report.source)}"
    return document(
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="referrer", content="no-referrer"),
            element("title", title),
            element("style", STYLESHEET),
        ),
        element(
            "body",
            element("a", "Skip to the report", href="#report", class_="skip"),
            element("header", element("h1", "Audit report"), _about(report), _verdict(report), _contents()),
            element(
                "main",
                _section("happened", _numbers(activity), *_happened(activity)),
                _section("denied", _denied(activity)),
                _section("privileged", _privileged(activity)),
                _section("logins", _failed_logins(activity)),
                _section("new", _new_actors(activity)),
                _section("coverage", *_coverage(report)),
                _section("verification", *_verification(report, rows_max)),
                _section("keys", *_keys(verification)),
                _section("limits", element("ul", *(element("li", each) for each in LIMITS))),
                id="report",
            ),
        ),
    )


def _section(name: str, *children: Markup) -> Markup:
    heading = element("h2", _SECTIONS[name], id=f"{name}-title")
    return element("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def _contents() -> Markup:
    links = (element("li", element("a", title, href=f"#{name}")) for name, title in _SECTIONS.items())
    return element("nav", element("ul", *links), aria_label="Contents")


def _about(report: TrailReport) -> Markup:
    asked = report.asked
    since = "its beginning" if asked.since_ns is None else _time(asked.since_ns)
    until = "its end" if asked.until_ns is None else _time(asked.until_ns)
    facts: dict[str, str] = {
        "Trail": element("code", _long(report.source)),
        "Period": joined("from ", since, " to ", until, ", UTC"),
        **{name.capitalize(): _long(", ".join(words)) for name, words in asked.words.items() if words},
        "Made": joined(_time(report.made_ns), f" by otel-audit {__version__}"),
    }
    return _facts(facts)


def _facts(facts: Mapping[str, str]) -> Markup:
    return element(
        "dl", *(joined(element("dt", name), element("dd", value)) for name, value in facts.items()), class_="about"
    )


def _verdict(report: TrailReport) -> Markup:
    style = report.verification.verdict.value if report.verification is not None else "consistent"
    return element("div", _paragraph(_long(report.conclusion)), class_=f"verdict {style}")


def _numbers(activity: Activity) -> Markup:
    totals = activity.totals
    numbers = {
        "events": totals["events"],
        "actors": totals["actors"],
        "denied": totals[Outcome.DENIED],
        "privileged": totals["privileged"],
        "failed logins": totals["failed_logins"],
        "new actors": activity.new_actors.total if activity.new_actors is not None else None,
        "gaps": totals["gaps"],
        "events lost": totals["lost"],
        "silent times": activity.silences.total,
    }
    shown = (element("div", element("dt", name), element("dd", _number(value))) for name, value in numbers.items())
    return element("dl", *shown, class_="numbers")


def _happened(activity: Activity) -> Sequence[Markup]:
    most = max((day["events"] for day in activity.days.rows), default=0)
    results = [str(each) for each in Outcome if any(day[each] for day in activity.days.rows)]
    return (
        _table(
            "Events by day",
            activity.days,
            _Column("Day", lambda row: row["day"] or "-", "time"),
            _count("Events", "events"),
            *(_count(each.capitalize(), each) for each in results),
            _Column("Share", lambda row: _bar(row, most), "text", is_decoration=True),
            left_out="earlier days",
        ),
        _table(
            "Events by type and outcome",
            activity.types,
            _text("Type", "event_type"),
            _text("Outcome as logged", "outcome"),
            _text("Result", "result"),
            _count("Events", "events"),
        ),
        _table(
            "Events by actor",
            activity.actors,
            _Column("Actor", _who, "text"),
            _text("On behalf of", "on_behalf_of"),
            _count("Events", "events"),
            _count("Denied", "denied"),
            _count("Failed", "failed"),
            _moment("First", "first_ns"),
            _moment("Last", "last_ns"),
        ),
    )


def _denied(activity: Activity) -> Markup:
    return _table(
        "Denied, the most frequent first",
        activity.denied,
        _Column("Actor", _who, "text"),
        _text("On behalf of", "on_behalf_of"),
        _text("Type", "event_type"),
        _text("Request or tool", "what"),
        _text("Target", "target"),
        _text("Last reason or detail", "reason"),
        _count("Events", "events"),
        _moment("Last", "last_ns"),
        _id("Last event", "last_event_id"),
    )


def _privileged(activity: Activity) -> Markup:
    return _table(
        f"Events with the tag {PRIVILEGED}, the last first",
        activity.privileged,
        _Column("Actor", _who, "text"),
        _text("On behalf of", "on_behalf_of"),
        _text("Type", "event_type"),
        _text("Request or tool", "what"),
        _text("Target", "target"),
        _text("Result", "result"),
        _count("Events", "events"),
        _moment("First", "first_ns"),
        _moment("Last", "last_ns"),
        _id("Last event", "last_event_id"),
    )


def _failed_logins(activity: Activity) -> Markup:
    return _table(
        "Failed logins by actor and address, the most frequent first",
        activity.failed_logins,
        _Column("Actor", _who, "text"),
        _text("Address", "client"),
        _count("Events", "events"),
        _moment("First", "first_ns"),
        _moment("Last", "last_ns"),
        _id("Last event", "last_event_id"),
    )


def _new_actors(activity: Activity) -> Markup:
    if activity.new_actors is None:
        return _paragraph(
            "The trail has no event from before the period, so nobody can be called new. Give a later --since."
        )
    return _table(
        "Actors whose first event is in the period",
        activity.new_actors,
        _Column("Actor", _who, "text"),
        _text("Kind", "kind"),
        _text("First address", "client"),
        _count("Events", "events"),
        _moment("First", "first_ns"),
        _id("First event", "first_event_id"),
    )


def _coverage(report: TrailReport) -> Sequence[Markup]:
    activity, gathered = report.activity, report.gathered
    begins = "The trail has no event." if activity.begins_ns is None else None
    counts = (_count("Events", "events"), _moment("From", "first_ns"), _moment("To", "last_ns"))
    losses = (_count("Gaps", "gaps"), _count("Events lost", "lost"))
    return (
        _paragraph(
            begins or joined("The oldest event in the trail is of ", _time(activity.begins_ns), "."),
            f" {gathered.damaged} damaged pieces, which may hold events, and {gathered.others} records of other "
            "programs were passed over. This part is about all actors.",
        ),
        _table(
            "Coverage by service",
            activity.services,
            _text("Service", "service"),
            _count("Streams", "streams"),
            *counts,
            *losses,
        ),
        _table(
            "Coverage by stream, the last one first",
            activity.streams,
            _id("Stream", "stream_id"),
            _text("Service", "service"),
            *counts,
            *losses,
        ),
        _table(
            "Gaps: losses that the services themselves recorded",
            activity.gaps,
            _moment("Recorded", "time_ns"),
            _text("Service", "service"),
            _count("Events lost", "lost"),
            _Column("Reason", lambda row: _short(", ".join(row["reasons"] or ()) or row["reason"]), "text"),
            _id("Stream", "stream_id"),
            _count("Line", "seq"),
        ),
        _table(
            "Silent times: an hour or more without an event, the longest first",
            activity.silences,
            _text("Service", "service"),
            _moment("From", "since_ns"),
            _moment("To", "until_ns"),
            _Column("Length", lambda row: _length(row["seconds"]), "number"),
        ),
    )


def _verification(report: TrailReport, rows_max: int) -> Sequence[Markup]:
    verification = report.verification
    if verification is None:
        return (_paragraph(_long(report.conclusion)),)
    found = [each for weight in Class for each in verification.all_findings if each.weight is weight]
    facts = [
        {"class": each.weight, "kind": each.kind, "stream": each.stream_id, "line": each.seq, "says": each.message}
        for each in found[:rows_max]
    ]
    streams = sorted(verification.streams, key=lambda each: each.state == "removed")
    return (
        _paragraph(
            f"Pinned by {_long(' and '.join(verification.pins))}."
            if verification.pins
            else "Nothing was given that vouches for the trail from outside: no key, no earlier note."
        ),
        _table(
            "Reasons",
            Table(facts, len(found)),
            _Column("Weight", _weight, "text"),
            _text("Kind", "kind"),
            _text("Fact", "says"),
            _id("Stream or ledger", "stream"),
            _count("Line", "line"),
        ),
        _table(
            "Streams",
            Table([each.as_json() for each in streams[:rows_max]], len(streams)),
            _id("Stream", "stream_id"),
            _text("Service", "service"),
            _text("State", "state"),
            _count("First line", "first_seq"),
            _count("Last line", "last_seq"),
            _count("Chained to", "chain_to"),
            _count("Signed to", "signed_to"),
            _count("Vouched for to", "anchored_to"),
        ),
    )


def _keys(verification: Report | None) -> Sequence[Markup]:
    ledgers = [each for each in verification.ledgers if each.notes] if verification is not None else []
    if not ledgers:
        return (_paragraph("No signed note was found, so the verification rests on no key."),)
    return (
        _paragraph(
            "The verification rests on the keys and notes below. They come from the trail itself: compare a key with "
            "one that you got from elsewhere, and keep the note elsewhere for the next verification (verify --known)."
        ),
        *(_ledger(each) for each in ledgers),
    )


def _ledger(ledger: LedgerReport) -> Markup:
    facts: dict[str, str] = {
        "Origin": element("code", _long(ledger.origin)),
        "Lines under the last note": str(ledger.size),
        "Time of the last note": _time(ledger.note_time_ns),
        "Root": element("code", _long(ledger.root)),
        "Notes": str(ledger.notes),
        "Key epochs": str(ledger.epochs),
        "Key in force": element("code", _long(ledger.vkey)),
        "Identity key": element("code", _long(ledger.identity)) if ledger.identity else "none",
    }
    return joined(
        element("h3", "Ledger ", element("code", _short(ledger.origin))),
        _facts(facts),
        element("pre", lines(_short(ledger.note, _NOTE_MAX)), role="region", aria_label="The last note", tabindex="0"),
    )


class _Column(NamedTuple):
    """A column of a table: its heading, the content of a cell, and its kind, which is a class of the stylesheet."""

    title: str
    content: Callable[[Row], str]
    kind: str
    is_decoration: bool = False  # says nothing that other columns do not say


def _text(title: str, key: str) -> _Column:
    return _Column(title, lambda row: _short(row[key]), "text")


def _id(title: str, key: str) -> _Column:
    return _Column(title, lambda row: _short(row[key]), "id")


def _count(title: str, key: str) -> _Column:
    return _Column(title, lambda row: _number(row[key]), "number")


def _moment(title: str, key: str) -> _Column:
    return _Column(title, lambda row: _time(row[key]), "time")


def _table(caption: str, table: Table, *columns: _Column, left_out: str = "rows") -> Markup:
    """Return a table with its own scroll bar if it is too wide, also by keyboard. The first column names the row."""
    if not table.rows:
        return joined(element("h3", caption), element("p", "None.", class_="quiet"))
    head = (
        element("td", class_=each.kind, aria_hidden="true")
        if each.is_decoration
        else element("th", each.title, scope="col", class_=each.kind)
        for each in columns
    )
    first, *others = columns
    body = (
        element(
            "tr",
            element("th", first.content(row), scope="row", class_=first.kind),
            *(_cell(row, each) for each in others),
        )
        for row in table.rows
    )
    shown = element(
        "table", element("caption", caption), element("thead", element("tr", *head)), element("tbody", *body)
    )
    more = _paragraph(f"and {_number(table.more)} more {left_out}", class_="quiet") if table.more else Markup()
    return joined(element("div", shown, class_="scroll", role="region", aria_label=caption, tabindex="0"), more)


def _cell(row: Row, column: _Column) -> Markup:
    content = column.content(row)
    if column.is_decoration:
        return element("td", content, class_=column.kind, aria_hidden="true")
    return element("td", content, class_=column.kind)


def _paragraph(*children: str, **attributes: str) -> Markup:
    return element("p", *children, **attributes)


def _who(row: Row) -> str:
    """Return the name of an actor, followed by the id and its issuer if there is an id, since names are not unique."""
    actor, name, issuer = row["actor"], row["name"], row["issuer"]
    if actor is None:
        return element("em", "anonymous")
    at = f" at {_short(issuer)}" if issuer else ""
    return _short(actor) + at if name in (None, actor) else f"{_short(name)} ({_short(actor)}{at})"


def _weight(row: Row) -> Markup:
    return element("span", _CLASSES[row["class"]], class_=str(row["class"]))


def _bar(day: Row, most: int) -> Markup:
    """Draw the events of a day by their results, without style attributes, which the page's policy refuses."""
    at, parts = 0.0, []
    for result in Outcome:
        width = 100 * day[result] / most if most else 0
        if width:
            parts.append(element("rect", class_=str(result), x=f"{at:.2f}", width=f"{width:.2f}", height="8"))
        at += width
    return element("svg", *parts, class_="bar", viewBox="0 0 100 8", preserveAspectRatio="none", focusable="false")


def _time(time_ns: int | None) -> Markup:
    if time_ns is None:
        return joined("-")
    try:
        moment = _EPOCH + timedelta(microseconds=time_ns // 1000)
    except OverflowError:
        return joined(f"{time_ns} ns")
    written = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return element("time", written.replace("T", " ").partition(".")[0], datetime=written)


def _length(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _short(value: object, most: int = _TEXT_MAX) -> str:
    text = "-" if value is None or value == "" else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _long(text: str) -> str:
    return _short(text, _LONG_MAX)
