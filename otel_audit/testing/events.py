"""Find events in a trail. What a test expected and was not logged is shown beside what was logged instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from pydantic import BaseModel

from otel_audit.event import AuditEvent
from otel_audit.journal.line import is_system
from otel_audit.logger import AuditLogger
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.store import DamagedBytes, ForeignRecord, Remains

__all__ = ["AuditEvents", "lines_in"]

_SHOWN: Final = 10
_NOTABLE: Final = ("outcome", "principal", "action", "resource", "status_code", "error_type", "reason")
_decode: Final[Callable[[bytes], Any]] = msgspec.json.Decoder().decode


class AuditEvents:
    """The events of a trail, in the order in which they were recorded. The trail is read anew at each look.

    Events of several streams, as of processes, that have the same time come stream by stream.

    `lines` gives the lines of the trail so far. Events that the journal records about itself are left out.

    `one`, `none` and `matching` take fields of `AuditEvent`. A mapping stands for some fields of a part, a text for its
    main field: `principal={"username": "ann"}` and `principal="ann"` mean the same, and `attributes={"days": 3}` says
    nothing of other attributes.
    """

    def __init__(self, lines: Callable[[], Iterable[bytes]]) -> None:
        self._lines = lines
        self._forgotten: set[bytes] = set()

    @classmethod
    def of(cls, audit: AuditLogger) -> Self:
        """Return the events in the journal of a logger, whoever wrote them. Call `forget` to leave out earlier ones.

        Raises:
            TypeError: the logger writes into another sink than a trail.
        """
        settings = audit.settings
        if settings is None:
            raise TypeError("AuditEvents.of: expected a logger of otel_audit.configure(), got one without a journal")
        directory = settings.directory.absolute()
        return cls(lambda: lines_in(directory))

    def __iter__(self) -> Iterator[AuditEvent]:
        for line in self._lines():
            if line not in self._forgotten and not is_system(line):
                fields = _decode(line)
                if isinstance(fields, dict) and "event_type" in fields:
                    yield AuditEvent(**fields)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return "\n".join([f"{len(self)} audit events", *_listed(list(self))])

    def matching(self, **fields: Any) -> list[AuditEvent]:
        """Return the events that have these fields.

        Raises:
            TypeError: an event has no such field.
        """
        _check_names("", fields, AuditEvent)
        return [event for event in self if not _differences(event, fields)]

    def one(self, **fields: Any) -> AuditEvent:
        """Return the only event that has these fields.

        Raises:
            AssertionError: there is none, or more than one. It says how each event differs, the nearest first.
            TypeError: an event has no such field.
        """
        __tracebackhide__ = True
        found = self.matching(**fields)
        if len(found) == 1:
            return found[0]
        if found:
            raise AssertionError("\n".join([f"expected one event {_said(fields)}, got {len(found)}:", *_listed(found)]))
        raise AssertionError(
            "\n".join([f"expected one event {_said(fields)}, got none", *_instead(list(self), fields)])
        )

    def none(self, **fields: Any) -> None:
        """Return if no event has these fields; without fields, if there is no event.

        Raises:
            AssertionError: there is one. All are listed.
            TypeError: an event has no such field.
        """
        __tracebackhide__ = True
        found = self.matching(**fields)
        if found:
            raise AssertionError("\n".join([f"expected no event {_said(fields)}, got {len(found)}:", *_listed(found)]))

    def forget(self) -> None:
        """Leave out what was recorded so far from now on, such as the events of a test's preparations."""
        self._forgotten.update(self._lines())


def lines_in(directory: Path) -> Iterator[bytes]:
    """Yield the lines of all streams of a journal by the time at which they were recorded; nothing without a journal.

    Raises:
        AssertionError: something in the directory is no line of the journal.
    """
    if not directory.is_dir():
        return
    found: list[tuple[int, str, int, bytes]] = []
    with DirectoryStore(directory) as store:
        for stored in store.contents():
            if isinstance(stored, DamagedBytes | Remains | ForeignRecord):
                raise AssertionError(f"{directory}: expected a whole journal, got {stored}")
            stream_id, line = stored
            found.append((_decode(line.content).get("observed_ns", 0), stream_id, line.seq, line.content))
    yield from (line for *_, line in sorted(found))


def _check_names(path: str, fields: Mapping[str, Any], model: type[BaseModel]) -> None:
    for name, value in fields.items():
        field = model.model_fields.get(name)
        if field is None:
            known = ", ".join(model.model_fields)
            raise TypeError(f"expected fields of {model.__name__} ({known}), got {path + name!r}")
        part = field.annotation
        if isinstance(value, Mapping) and isinstance(part, type) and issubclass(part, BaseModel):
            _check_names(f"{path}{name}.", value, part)


def _differences(event: AuditEvent, fields: Mapping[str, Any]) -> list[str]:
    """Return a line for each field that is not as expected."""
    return [line for name, wanted in fields.items() for line in _difference(name, wanted, getattr(event, name))]


def _difference(path: str, wanted: Any, got: Any) -> Iterator[str]:
    if isinstance(wanted, str) and isinstance(got, BaseModel):
        main: str = getattr(type(got), "_main_field", "")
        path, got = f"{path}.{main}", getattr(got, main, None)
    if isinstance(wanted, Mapping) and not isinstance(wanted, BaseModel):
        held = got.model_dump() if isinstance(got, BaseModel) else got or {}
        for name, value in wanted.items():
            yield from _difference(f"{path}.{name}", value, held.get(name))
    elif wanted != got:
        yield f"{path}: expected {_value(wanted)}, got {_value(got)}"


def _instead(events: list[AuditEvent], fields: Mapping[str, Any]) -> Iterator[str]:
    if not events:
        yield "nothing was logged"
        return
    yield "logged instead:"
    numbered = [(_differences(event, fields), number, event) for number, event in enumerate(events, 1)]
    for differences, number, event in sorted(numbered, key=lambda each: (len(each[0]), each[1]))[:_SHOWN]:
        yield f"  {number}. {event.event_type}"
        yield from (f"       {line}" for line in differences)
    yield from _and_more(len(events))


def _listed(events: list[AuditEvent]) -> Iterator[str]:
    for number, event in enumerate(events[:_SHOWN], 1):
        words = [f"{name}={_value(value)}" for name in _NOTABLE if (value := _told(getattr(event, name)))]
        yield f"  {number}. {' '.join([event.event_type, *words])}"
    yield from _and_more(len(events))


def _and_more(count: int) -> Iterator[str]:
    if count > _SHOWN:
        yield f"  and {count - _SHOWN} more"


def _told(value: Any) -> Any:
    """Return of a part no more than what is set."""
    return {k: v for k, v in value.model_dump(mode="json").items() if v} if isinstance(value, BaseModel) else value


def _said(fields: Mapping[str, Any]) -> str:
    return "with " + ", ".join(f"{name}={_value(value)}" for name, value in fields.items()) if fields else "at all"


def _value(value: Any) -> str:
    return repr(str(value)) if isinstance(value, str) else repr(value)  # of an enum, its word
