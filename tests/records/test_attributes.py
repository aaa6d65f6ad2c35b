"""The table of attribute keys."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from otel_audit.event import AuditEvent
from otel_audit.records import attributes
from otel_audit.records.attributes import ATTRIBUTES, KEY_PATTERN, Attribute, Standard

SEMCONV_MODULES = ("client", "error", "gen_ai", "http", "jsonrpc", "mcp", "url", "user", "user_agent")


def row_id(row: Attribute) -> str:
    return row.key


@pytest.mark.parametrize("row", ATTRIBUTES, ids=row_id)
def test_a_key_is_plain_ascii_that_every_store_takes(row: Attribute) -> None:
    assert KEY_PATTERN.fullmatch(row.key)
    assert row.key.isascii()


def test_a_key_stands_in_the_table_once_even_where_dots_become_underscores() -> None:
    folded = [row.key.replace(".", "_") for row in ATTRIBUTES]

    assert sorted(folded) == sorted(set(folded))


def test_our_own_facts_fit_into_a_record_beside_the_attributes_of_the_event() -> None:
    assert len(ATTRIBUTES) < attributes.MAX_ATTRIBUTES


def test_every_key_constant_stands_in_the_table() -> None:
    constants = {
        value
        for name, value in vars(attributes).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str) and "." in value
    } - {attributes.SCHEMA_VERSION, attributes.FREE_PREFIX}

    assert constants <= {row.key for row in ATTRIBUTES}
    assert len(constants) > 15


@pytest.mark.parametrize("row", [row for row in ATTRIBUTES if row.field], ids=row_id)
def test_the_field_of_a_row_exists(row: Attribute) -> None:
    if row.field in {"stream_id", "seq"} or row.field.startswith("resource: "):
        return  # of the journal, or of the segment header
    part, _, name = row.field.partition("[")[0].rpartition(".")
    model = AuditEvent.model_fields[part].annotation if part else AuditEvent

    assert name in model.model_fields  # type: ignore[union-attr]  # a model: parts are models


@pytest.mark.parametrize("row", [row for row in ATTRIBUTES if row.standard in {Standard.SEMCONV, Standard.GENAI}])
def test_a_key_that_is_said_to_be_a_convention_is_one_in_the_installed_conventions(row: Attribute) -> None:
    known: set[str] = set()
    for name in SEMCONV_MODULES:
        try:
            module = import_module(f"opentelemetry.semconv._incubating.attributes.{name}_attributes")
        except ModuleNotFoundError:
            pytest.skip(f"these conventions are older than their {name} attributes")
        known.update(value for value in vars(module).values() if isinstance(value, str))

    assert row.key in known


def test_every_row_names_the_section_of_its_standard() -> None:
    assert all(bool(row.section) == (row.standard is not Standard.OURS) for row in ATTRIBUTES)


def test_the_table_in_the_docs_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "schema.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]

    assert [row.key for row in ATTRIBUTES] == [key for key in rows if key in {row.key for row in ATTRIBUTES}]
