"""What a policy decides on an event, and what is left of one that is kept at level `metadata`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from otel_audit.derived import http_facts_of
from otel_audit.event import AuditEvent
from otel_audit.policy.facts import ROUTE_ATTRIBUTE
from otel_audit.settings import OnLoss

__all__ = ["Decision", "Level", "as_metadata"]


class Level(StrEnum):
    """How much of an event is recorded: nothing; who did what, when and how it ended; or all that was given.

    Source: the levels of Kubernetes' audit policy, without its `RequestResponse`.
    """

    NONE = "none"
    METADATA = "metadata"
    REQUEST = "request"


class Decision(NamedTuple):
    """What becomes of an event: how much of it is recorded, and what happens if that fails.

    `is_vital`: on a disk that is nearly full it is written whatever its outcome, as with `closed`.
    """

    level: Level
    on_loss: OnLoss
    is_vital: bool = False

    @property
    def keep(self) -> bool:
        """Whether it is recorded at all."""
        return self.level is not Level.NONE

    def kept(self) -> Decision:
        """The same, for an event that is recorded in any case."""
        return self if self.keep else self._replace(level=Level.METADATA)


_FREE_FIELDS: Final = ("detail", "attributes")


def as_metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an event without what its caller was free to put in: detail, attributes, digest of the arguments.

    The route template stays: it is a text of the program. So do the method and status of a request, of which a helper
    writes nothing but the detail.
    """
    left = {key: value for key, value in fields.items() if key not in _FREE_FIELDS}
    action = fields.get("action")
    if isinstance(action, dict):
        left["action"] = {key: value for key, value in action.items() if key != "arguments_digest"}
    if "detail" in fields:
        left["detail"] = ""
    attributes = fields.get("attributes")
    if isinstance(attributes, dict) and ROUTE_ATTRIBUTE in attributes:
        left["attributes"] = {ROUTE_ATTRIBUTE: attributes[ROUTE_ATTRIBUTE]}
    _keep_request(left, fields)
    return {key: left[key] for key in AuditEvent.model_fields if key in left}


def _keep_request(left: dict[str, Any], fields: Mapping[str, Any]) -> None:
    action = left.get("action")
    if fields.get("event_type") != "http.request" or not isinstance(action, dict):
        return
    said = http_facts_of(fields)
    if said.method:
        action.setdefault("method", said.method)
    if said.status_code is not None:
        left.setdefault("status_code", said.status_code)
