"""What the user's rules change in an event, secrets apart: whose it is, where it came from, which attributes it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_audit.redaction.client_info import shortened_attributes, shortened_source
from otel_audit.redaction.line_fit import Address
from otel_audit.redaction.rules import Rules

__all__ = ["rewritten_event", "rewritten_field"]


def rewritten_field(name: str, value: Any, rules: Rules, removed: set[Address]) -> Any:
    """A field of the model with pseudonyms, and with what is left of the client. Its attributes are all there still."""
    if name == "principal" and rules.pseudonyms is not None:
        return rules.pseudonyms.of_principal(value)
    if name == "source":
        return shortened_source(value, rules.client_info, removed)
    if name == "attributes" and type(value) is dict:
        return shortened_attributes(value, rules.client_info, removed)
    return value


def rewritten_event(fields: Mapping[str, Any], rules: Rules, removed: set[Address]) -> dict[str, Any]:
    """An event in which there is no secret, with all that the rules change. `fields` is not changed."""
    event = {name: rewritten_field(name, value, rules, removed) for name, value in fields.items()}
    attributes = event.get("attributes")
    if rules.keep_attributes is not None and type(attributes) is dict:
        event["attributes"] = {key: value for key, value in attributes.items() if rules.keeps_attribute(key)}
        removed |= {("attributes", key) for key in attributes if key not in event["attributes"]}
    return event
