"""Show events on stderr as they happen.

A journal line is shown as one line with aligned columns, and nothing in it is what a terminal would obey.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from otel_audit.delivery.outcomes import Accepted, Batch, ExportOutcome, Unavailable
from otel_audit.event_schema import Outcome
from otel_audit.journal.line import GAP, SEGMENT
from otel_audit.notices import escaped
from otel_audit.records.encoding import UnreadableLine, read_line
from otel_audit.records.facts import HttpFacts, action_of, http_facts_of, part_of
from otel_audit.records.otlp_json import OTLP
from otel_audit.threads import FORKS_WAIT

__all__ = ["ConsoleExporter", "LineView", "Terminal"]


_SEPARATOR: Final = "  "
_NOTHING: Final = "-"
_LOUD: Final = "bold white on red"
_UNREADABLE_SHOWN_BYTES: Final = 300
_STYLES: Final = {
    Outcome.SUCCESS: "green",
    Outcome.UNKNOWN: "cyan",
    Outcome.FAILURE: "yellow",
    Outcome.DENIED: "yellow",
    Outcome.CANCELLED: "magenta",
    Outcome.ERROR: "bold red",
}


class _Columns(msgspec.Struct, frozen=True):
    """The widths of the columns in terminal cells; 0 leaves one out. Without `cut`, a long value moves the rest."""

    time: int
    actor: int
    target: int
    result: int
    trace: int
    note: int
    outcome: int = 9  # "cancelled"
    event_type: int = 18  # "mcp.resources.read"
    cut: bool = True

    @classmethod
    def fitting(cls, width: int | None, *, dated: bool) -> _Columns:
        if width is None:
            return cls(time=24 if dated else 13, actor=18, target=58, result=13, trace=8, note=1, cut=False)
        if width < 100:
            return cls(time=8, actor=10, target=max(8, width - 65), result=10, trace=0, note=0)
        time = 24 if dated and width >= 140 else 13  # a date must not take the place of the note
        if width < 150:
            rest = max(0, width - time - 65)
            target = min(rest, max(20, rest // 2))
            return cls(time=time, actor=12, target=target, result=10, trace=0, note=max(0, rest - target - 2))
        rest = width - time - 82
        return cls(time=time, actor=16, target=min(40, rest // 2), result=13, trace=8, note=rest - min(40, rest // 2))


class LineView:
    """Show journal lines in columns of `width` terminal cells, or uncut if it is None, as in a file or a pipe.

    `dated` adds the day if there is room. Times are in UTC.
    """

    def __init__(self, *, width: int | None = None, dated: bool = False) -> None:
        self._width = width
        self._dated = dated
        self._columns = _Columns.fitting(width, dated=dated)

    def show(self, line: bytes) -> Text | None:
        """Return the line as people read it, or None for a segment header, which is no event."""
        try:
            event = read_line(line)
        except UnreadableLine as error:
            return self._fitted(_unreadable(line, error.reason))
        match event.get("system"):
            case None if OTLP in event:
                return self._fitted(self._foreign(event))
            case None:
                return self._fitted(self._event(event))
            case str() as kind if kind == SEGMENT:
                return None
            case str() as kind if kind == GAP:
                return self._fitted(Text(f"{self._time(event)}{_SEPARATOR}GAP  {_gap(event)}", _LOUD))
            case kind:
                return self._fitted(Text(f"{self._time(event)}{_SEPARATOR}{_value(kind)}", "dim"))

    def show_json(self, text: str) -> Text:
        """Return the JSON of a record that is not a journal line, without columns."""
        return self._fitted(Text(escaped(text)))

    def _event(self, event: Mapping[str, Any]) -> Text:
        columns = self._columns
        http = http_facts_of(event)
        word = event.get("outcome")
        return self._row(
            (self._time(event), columns.time, "dim"),
            (_value(word) if word else Outcome.UNKNOWN.value, columns.outcome, _STYLES[Outcome.of(word)]),
            (_value(event["event_type"]), columns.event_type, ""),
            (_actor(event), columns.actor, "bold"),
            (_target(event, http), columns.target, ""),
            (_result(event, http), columns.result, ""),
            (_value(event.get("trace_id"))[:8], columns.trace, "dim"),
            (_note(event, http), columns.note, ""),
        )

    def _foreign(self, event: Mapping[str, Any]) -> Text:
        """Return the logger, the severity and the body of a record that the plain logs API made."""
        columns = self._columns
        scope_logs = _first(part_of(event, OTLP), "scopeLogs")
        record = _first(scope_logs, "logRecords")
        return self._row(
            (self._time(event), columns.time, "dim"),
            (_value(record.get("severityText")).lower(), columns.outcome, "cyan"),
            (_value(event["event_type"]), columns.event_type, ""),
            (_value(part_of(scope_logs, "scope").get("name")), columns.actor, "bold"),
            (_plain(record.get("body")), columns.target + columns.result, ""),
            (_value(record.get("traceId"))[:8], columns.trace, "dim"),
            (_pairs(record.get("attributes")), columns.note, ""),
        )

    def _row(self, *cells: tuple[str, int, str]) -> Text:
        shown = Text()
        for text, width, style in cells:
            if width:
                shown.append(self._cell(text or _NOTHING, width), style)
                shown.append(_SEPARATOR)
        shown.rstrip()
        return shown

    def _cell(self, text: str, width: int) -> str:
        used = cell_len(text)
        if used <= width:
            return text + " " * (width - used)
        return set_cell_size(text, width - 1) + "…" if self._columns.cut else text

    def _fitted(self, shown: Text) -> Text:
        if self._width is not None:
            shown.truncate(self._width, overflow="ellipsis")
        return shown

    def _time(self, event: Mapping[str, Any]) -> str:
        seconds, rest_ns = divmod(event["time_ns"], 1_000_000_000)
        try:
            moment = datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, ValueError, OSError):  # a caller's time beyond the year 9999
            return str(event["time_ns"])
        width = self._columns.time
        day = f"{moment:%Y-%m-%d} " if width >= 24 else ""
        return f"{day}{moment:%H:%M:%S}" + (f".{rest_ns // 1_000_000:03d}Z" if width > 8 else "")


def _unreadable(line: bytes, reason: str) -> Text:
    start = escaped(line[:_UNREADABLE_SHOWN_BYTES].decode("utf-8", "backslashreplace"))
    return Text(f"UNREADABLE LINE  {escaped(reason)}: {start}", _LOUD)


def _gap(event: Mapping[str, Any]) -> str:
    gap = part_of(event, "gap")
    told = f"{_value(gap.get('lines', 0))} events lost, reason: {_value(gap.get('reason'))}"
    by_reason = [
        f"{escaped(reason)}: {_value(part_of(part_of(gap, 'by_reason'), reason).get('count'))}"
        for reason in part_of(gap, "by_reason")
    ]
    return f"{told} ({', '.join(by_reason)})" if by_reason else told


def _actor(event: Mapping[str, Any]) -> str:
    principal = part_of(event, "principal")
    name, identity = _value(principal.get("username")), _value(principal.get("id"))
    who = f"{name} ({identity})" if name and identity and name != identity else name or identity or "anonymous"
    behalf = _value(principal.get("on_behalf_of"))
    return f"{who} for {behalf}" if behalf else who


def _target(event: Mapping[str, Any], http: HttpFacts) -> str:
    action, resource = part_of(event, "action"), part_of(event, "resource")
    asked = _value(action.get("mcp_tool")) or _request(event, http)
    name, kind = _value(resource.get("name")), _value(resource.get("type"))
    thing = "/".join(word for word in (kind, name) if word)
    return " ".join(word for word in (asked, thing) if word)


def _request(event: Mapping[str, Any], http: HttpFacts) -> str:
    if http.method:
        return escaped(f"{http.method} {http.path}".strip())
    action = part_of(event, "action")
    verb = action_of(event, "") if event["event_type"] == "authz.decision" else action.get("verb")
    return " ".join(word for word in (_value(verb), _value(action.get("path"))) if word)


def _result(event: Mapping[str, Any], http: HttpFacts) -> str:
    status = http.status_code if http.status_code is not None else event.get("status_code")
    return " ".join(word for word in (_value(status), _duration(event.get("duration_ms"))) if word)


def _duration(milliseconds: object) -> str:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return ""
    return f"{milliseconds:.1f}ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f}s"


def _note(event: Mapping[str, Any], http: HttpFacts) -> str:
    detail = _value(event.get("detail"))
    if http.method and detail == escaped(f"{http.method} {http.path} -> {http.status_code}"):
        detail = ""  # Feast's detail of a request repeats what the columns show
    words = (_value(event.get("reason")), _value(event.get("error_type")), detail)
    return ": ".join(word for word in words if word)


def _first(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = holder.get(name)
    return found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}


def _plain(any_value: object) -> str:
    """Return a text of an OTLP-JSON AnyValue as it is, and any other value as JSON."""
    if not isinstance(any_value, dict) or not any_value:
        return ""
    return _value(next(iter(any_value.values())))


def _pairs(key_values: object) -> str:
    pairs = [each for each in key_values if isinstance(each, dict)] if isinstance(key_values, list) else []
    return " ".join(f"{_value(each.get('key'))}={_plain(each.get('value'))}" for each in pairs)


def _value(value: object) -> str:
    if value is None:
        return ""
    return escaped(value if isinstance(value, str) else msgspec.json.encode(value).decode())


_DELAY_S: Final = 0.1  # soon enough to be "as they happen", and a burst is still one write


class Terminal:
    """A text stream that shows lines. Without one, each write goes to what `sys.stderr` is at that time.

    Colours appear on a terminal only, and not if `NO_COLOR` is set. Source: no-color.org.
    """

    def __init__(self, stream: TextIO | None = None, *, dated: bool = False) -> None:
        self._stream = stream
        self._dated = dated

    def write(self, show: Callable[[LineView], Iterable[Text | None]]) -> None:
        """Write what `show` returns for a view as wide as the terminal, in one piece.

        Raises:
            OSError: the stream refused it; part of it may have been written.
        """
        stream = self._stream if self._stream is not None else sys.stderr
        if stream is None or stream.closed:
            raise OSError("the stream is closed")
        console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
        view = LineView(width=console.width if console.is_terminal else None, dated=self._dated)
        plain = not console.is_terminal or bool(os.environ.get("NO_COLOR"))
        shown = [_rendered(text, console, plain) for text in show(view) if text is not None]
        if shown:
            _put(stream, "\n".join(shown) + "\n")


class ConsoleExporter:
    """Show each event as one line on stderr or the given stream."""

    name = "console"
    delay_s = _DELAY_S

    def __init__(self, stream: TextIO | None = None) -> None:
        self._terminal = Terminal(stream)

    def export(self, batch: Batch) -> ExportOutcome:
        """Show the lines. Return `Unavailable` if the stream refuses them: they are shown again later."""
        try:
            self._terminal.write(lambda view: (view.show(line.content) for line in batch.lines))
        except OSError as error:
            return Unavailable(f"expected a stream that can be written, got {error.strerror or error}")
        return Accepted()

    def close(self) -> None:
        """Do nothing: the stream belongs to its owner."""


def _rendered(text: Text, console: Console, plain: bool) -> str:
    if plain:
        return text.plain
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()


def _put(stream: TextIO, text: str) -> None:
    # A stream in the C locale must not refuse an event for a letter that it cannot show.
    encoding = stream.encoding or "utf-8"
    try:
        with FORKS_WAIT:  # else a child may inherit the lock of the stream's buffer, and hang at its own first write
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
    except ValueError as error:  # closed by another thread since we looked
        raise OSError(str(error)) from error
