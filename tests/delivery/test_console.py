"""The console: events as they happen, readable, and nothing in them that a terminal would obey."""

from __future__ import annotations

import io
import os
import pty
import re
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from otel_audit.delivery.console import ConsoleExporter, LineView
from otel_audit.delivery.outcomes import Accepted, Batch, Unavailable
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource
from otel_audit.journal.line import system_event
from otel_audit.journal.reader import Line
from otel_audit.notices import escaped
from tests.journal_lines import HEADER, STREAM_ID, line_of, raw_line

A_REQUEST = AuditEvent(
    event_type="http.request",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    principal=AuditPrincipal(username="alice"),
    action=AuditAction(path="/push"),
    outcome="success",
    duration_ms=12.34,
    detail="POST /push -> 204",
)
A_DENIAL = AuditEvent(
    event_type="mcp.tools.call",
    principal=AuditPrincipal(username="bob"),
    action=AuditAction(mcp_tool="get_online_features"),
    resource=AuditResource(type="feature_view", name="drivers"),
    outcome="denied",
    reason="no role allows it",
)


def a_system_line(kind: str, content: dict[str, object]) -> bytes:
    tail = b',"time_ns":1790000000123456789,"observed_ns":1790000000123456789,"stream_id":"%b","seq":7}'
    return system_event(kind, content, 1790000000123456789)[:-1] + tail % STREAM_ID.encode()


A_GAP = a_system_line("gap", {"reason": "lost", "lines": 12, "by_reason": {"disk full": {"count": 12}}})
A_HEADER = a_system_line("segment", HEADER)


def a_batch(lines: Sequence[bytes]) -> Batch:
    return Batch(HEADER, [Line(line, seq) for seq, line in enumerate(lines, 1)])


def shown(*lines: bytes) -> str:
    stream = io.StringIO()
    assert ConsoleExporter(stream).export(a_batch(lines)) == Accepted()
    return stream.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[io.TextIOWrapper, int]]:
    """The two ends of a real terminal of 120 columns: a stream to write to, and a descriptor with what it shows."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as stream:
        yield stream, ours
    os.close(ours)


def test_an_event_is_one_line_with_who_what_how_it_ended_and_how_long() -> None:
    line = shown(line_of(A_REQUEST))

    assert line.count("\n") == 1
    assert " ".join(line.split()) == "14:13:20.123Z success http.request alice POST /push 204 12.3ms 0af76519 -"


def test_what_identifies_an_actor_stands_behind_a_name_that_it_may_have_chosen() -> None:
    chosen = AuditPrincipal(username="alice", id="00u-mallory")
    the_same = AuditPrincipal(username="0815", id="0815")
    only_an_id = AuditPrincipal(id="0815")

    assert "  alice (00u-mallory) " in shown(line_of(A_REQUEST.model_copy(update={"principal": chosen})))
    for principal in (the_same, only_an_id):
        assert "  0815  " in shown(line_of(A_REQUEST.model_copy(update={"principal": principal})))


def test_the_reason_of_a_denial_and_what_it_was_about_are_shown() -> None:
    line = shown(line_of(A_DENIAL))

    assert "denied     mcp.tools.call      bob" in line
    assert "get_online_features feature_view/drivers" in line
    assert line.endswith("no role allows it\n")


def test_a_record_of_the_plain_logs_api_shows_who_logged_what() -> None:
    record = {
        "severityText": "WARN",
        "body": {"stringValue": "sold \x1b[31mout"},
        "attributes": [{"key": "item", "value": {"intValue": "7"}}],
        "traceId": "0af7651916cd43dd8448eb211c80319c",
    }
    scope_logs = {"scope": {"name": "orders"}, "logRecords": [record]}

    line = shown(raw_line({"event_type": "shop.sold", "otlp": {"scopeLogs": [scope_logs]}}))

    assert re.search(r"warn +shop\.sold +orders +sold \\x1b\[31mout +0af76519 +item=7", line)


@pytest.mark.parametrize("otlp", [1, {}, {"scopeLogs": 1}, {"scopeLogs": [{"logRecords": [{"attributes": [1]}]}]}])
def test_a_record_that_is_none_is_shown_as_far_as_it_goes(otlp: object) -> None:
    assert "shop.sold" in shown(raw_line({"event_type": "shop.sold", "otlp": otlp}))


def test_columns_are_aligned() -> None:
    first, second, third = shown(
        line_of(A_REQUEST), line_of(A_DENIAL), line_of(AuditEvent(event_type="x"))
    ).splitlines()

    assert first.index("alice") == second.index("bob") == third.index("anonymous")
    assert first.index("POST") == second.index("get_online")


def test_an_event_without_an_outcome_is_unknown_and_never_a_success() -> None:
    assert "unknown" in shown(line_of(AuditEvent(event_type="x")))


def test_lines_of_the_journal_itself_are_not_in_the_way_but_a_gap_is_loud() -> None:
    assert shown(A_HEADER) == ""
    assert "GAP  12 events lost, reason: lost (disk full: 12)" in shown(A_GAP)


def test_a_line_that_cannot_be_read_is_said_and_the_others_are_shown() -> None:
    text = shown(b'{"event_type":\x1b[2J', line_of(A_REQUEST))

    assert "UNREADABLE LINE" in text
    assert "alice" in text
    assert "\x1b" not in text


def test_a_time_that_no_calendar_has_does_not_cost_the_event() -> None:
    assert "alice" in shown(line_of(A_REQUEST, time_ns=2**63 - 1), line_of(A_REQUEST, time_ns=-(2**62)))
    assert str(10**30) in shown(line_of(A_REQUEST, time_ns=10**30))


@given(st.text())
def test_no_character_of_an_event_reaches_the_terminal_that_could_move_or_colour_it(text: str) -> None:
    event = {
        "event_type": text,
        "outcome": text,
        "detail": text,
        "reason": text,
        "trace_id": text,
        "principal": {"username": text, "on_behalf_of": text},
        "action": {"mcp_tool": text, "verb": text, "path": text},
        "resource": {"type": text, "name": text},
    }
    line = raw_line(event).decode()

    view = LineView().show(line.encode())

    assert view is not None
    assert view.plain.isprintable()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_a_value_of_any_type_can_be_shown(value: object) -> None:
    fields = (
        "outcome",
        "principal",
        "action",
        "resource",
        "duration_ms",
        "status_code",
        "trace_id",
        "detail",
        "reason",
    )

    view = LineView(width=150).show(raw_line({"event_type": "odd", **dict.fromkeys(fields, value)}))

    assert view is not None
    assert "odd" in view.plain


@given(st.integers(min_value=40, max_value=250), st.text(alphabet="ab 駅é\x1b", max_size=80), st.booleans())
def test_a_line_is_never_wider_than_the_terminal(width: int, text: str, dated: bool) -> None:
    event = A_DENIAL.model_copy(update={"principal": AuditPrincipal(username=text), "detail": text * 9})

    view = LineView(width=width, dated=dated).show(line_of(event))

    assert view is not None
    assert cell_len(view.plain) <= width


def test_escapes_say_which_character_it_was() -> None:
    assert escaped("a\x1b[31m\n\u202eb\udc80駅") == "a\\x1b[31m\\n\\u202eb\\udc80駅"


def test_a_terminal_gets_colours_and_lines_that_fit(terminal: tuple[io.TextIOWrapper, int]) -> None:
    stream, screen = terminal
    event = A_DENIAL.model_copy(update={"detail": "x" * 500})

    assert ConsoleExporter(stream).export(a_batch([line_of(event)])) == Accepted()

    text = os.read(screen, 1 << 16).decode()
    assert "\x1b[33mdenied" in text
    assert len(re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip("\r\n")) <= 120


def test_no_color_means_no_escape_sequence_at_all(
    terminal: tuple[io.TextIOWrapper, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, screen = terminal
    monkeypatch.setenv("NO_COLOR", "1")

    ConsoleExporter(stream).export(a_batch([line_of(A_DENIAL), A_GAP]))

    assert b"\x1b" not in os.read(screen, 1 << 16)


def test_a_pipe_gets_no_colours_and_nothing_is_cut() -> None:
    text = shown(line_of(A_DENIAL.model_copy(update={"detail": "x" * 500})))

    assert "\x1b" not in text
    assert "x" * 500 in text


def test_stderr_is_the_one_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    assert ConsoleExporter().export(a_batch([line_of(A_REQUEST)])) == Accepted()

    assert "alice" in capsys.readouterr().err


def test_a_letter_that_the_stream_cannot_encode_is_escaped_and_costs_no_event() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    event = A_REQUEST.model_copy(update={"principal": AuditPrincipal(username="Zoë")})

    assert ConsoleExporter(stream).export(a_batch([line_of(event)])) == Accepted()

    assert b"Zo\\xeb" in raw.getvalue()


def test_a_pipe_that_nobody_reads_is_unavailable_and_says_why() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "w", encoding="utf-8")  # noqa: SIM115  # closing it would write again what it still holds
    exporter = ConsoleExporter(stream)

    outcome = exporter.export(a_batch([line_of(A_REQUEST)]))

    assert outcome == Unavailable("expected a stream that can be written, got Broken pipe")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_closed_stream_is_unavailable() -> None:
    stream = io.StringIO()
    stream.close()

    assert isinstance(ConsoleExporter(stream).export(a_batch([line_of(A_REQUEST)])), Unavailable)


def test_the_console_has_its_own_short_delay() -> None:
    assert (ConsoleExporter().name, ConsoleExporter().delay_s) == ("console", 0.1)


@pytest.mark.parametrize("dated", [False, True])
def test_the_reason_of_a_denial_is_readable_in_120_columns_dated_or_not(dated: bool) -> None:
    view = LineView(width=120, dated=dated).show(
        line_of(A_DENIAL.model_copy(update={"detail": "needs the role admin"}))
    )

    assert view is not None
    assert "no role allows it" in view.plain
