"""What a rule of a policy may ask of an event."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from otel_audit.event import AuditEvent, Outcome

__all__ = ["ROUTE_ATTRIBUTE", "Facts", "is_successful_read", "path_of"]

# Source: OTel semantic conventions, HTTP: the template of the path.
ROUTE_ATTRIBUTE: Final = "http.route"

_READ_TYPES: Final = frozenset({"mcp.tools.call", "http.request"})
_READ_TOOLS: Final = frozenset({"get_online_features", "retrieve_online_documents", "get_historical_features"})
_READ_ACTIONS: Final = frozenset({"READ_ONLINE", "READ_OFFLINE"})


class Facts(NamedTuple):
    """What an event says of itself, as texts; empty where it says nothing.

    `route`: the route template, else the path without its query. `actor`: the name of the principal; `actor_id` and
    `issuer`: what identifies it. `outcome`: the stored word. `actions`: what was done to the resource, for the rule
    about reads.
    """

    type: str
    route: str = ""
    tool: str = ""
    actor: str = ""
    outcome: str = ""
    actions: Sequence[str] = ()
    actor_id: str = ""
    issuer: str = ""

    @classmethod
    def of(cls, event: AuditEvent) -> Facts:
        """Of an event, whatever was assigned to its fields."""
        try:
            return cls._read(event)
        except Exception:  # of a model that lost a field, or of a value's own methods: no rule can ask for it
            return cls(_text(event.event_type))

    @classmethod
    def _read(cls, event: AuditEvent) -> Facts:
        attributes: Any = event.attributes
        template = _text(dict.get(attributes, ROUTE_ATTRIBUTE)) if isinstance(attributes, dict) else ""
        return cls(
            _text(event.event_type),
            template or path_of(_text(event.action.path)),
            _text(event.action.mcp_tool),
            _text(event.principal.username),
            _text(event.outcome),
            tuple(map(_text, event.resource.actions)),
            _text(event.principal.id),
            _text(event.principal.issuer),
        )

    @property
    def derived(self) -> str:
        """The derived outcome: `denied` where the word is `deny`."""
        return _derived(self.outcome)


@lru_cache(maxsize=64)
def _derived(word: str) -> str:
    return Outcome.of(word).value


def path_of(path: str) -> str:
    """A path without its query."""
    return path.partition("?")[0] if "?" in path else path


def is_successful_read(facts: Facts) -> bool:
    """Whether `log_successful_reads=False` leaves the event out.

    Source: Feast 0.67 `AuditLogger._is_read_event`.
    """
    if facts.outcome != "success" or facts.type not in _READ_TYPES:
        return False
    return facts.tool in _READ_TOOLS or (bool(facts.actions) and _READ_ACTIONS.issuperset(facts.actions))


def _text(value: object) -> str:
    """The text itself, not an object of a class derived from `str`, whose methods may do anything."""
    return value if type(value) is str else str.__str__(value) if isinstance(value, str) else ""
