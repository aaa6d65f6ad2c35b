"""The spans of a process that tests start, in a file: written there by the SDK, and read here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

__all__ = ["Span", "provider_into", "spans_in"]


@dataclass(frozen=True)
class Span:
    """A span that has ended, its ids in hex."""

    id: str
    trace: str
    parent: str | None
    name: str
    attributes: dict[str, Any]


def provider_into(path: str) -> TracerProvider:
    """A provider whose spans are in the file as soon as they end, as long as the process runs."""
    provider = TracerProvider()
    file = open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 - as long as the process
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=file, formatter=_line)))
    return provider


def spans_in(path: Path) -> dict[str, Span]:
    """The spans that have ended by now, by id."""
    return {span.id: span for span in map(_span, path.read_text(encoding="utf-8").split("\n")[:-1])}


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"


def _span(line: str) -> Span:
    span = json.loads(line)
    ids, parent = span["context"], span["parent_id"]
    return Span(ids["span_id"][2:], ids["trace_id"][2:], parent and parent[2:], span["name"], span["attributes"])
