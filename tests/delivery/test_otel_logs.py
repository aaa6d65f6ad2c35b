"""What the package needs of OTel's private modules. A release that moves it fails here first, and says what to mend."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from otel_audit.records import sdk as otel_logs

LOGS, SDK_LOGS, SDK_EXPORT = "opentelemetry._logs", "opentelemetry.sdk._logs", "opentelemetry.sdk._logs.export"

ARGUMENTS = [
    (
        f"{LOGS}.LogRecord",
        "timestamp observed_timestamp context severity_text severity_number body attributes event_name",
    ),
    (f"{SDK_LOGS}.ReadableLogRecord", "log_record resource instrumentation_scope"),
    (f"{SDK_LOGS}.ReadWriteLogRecord", "log_record resource instrumentation_scope"),
]
ABSTRACT = [
    (f"{SDK_LOGS}.LogRecordProcessor", {"on_emit", "shutdown", "force_flush"}),
    (f"{SDK_EXPORT}.LogRecordExporter", {"export", "shutdown", "force_flush"}),
]
NAMES = [
    *(name for name, _ in (*ARGUMENTS, *ABSTRACT)),
    f"{LOGS}.SeverityNumber.WARN",
    f"{SDK_EXPORT}.LogRecordExportResult.SUCCESS",
    f"{SDK_EXPORT}.LogRecordExportResult.FAILURE",
    "opentelemetry.context._SUPPRESS_INSTRUMENTATION_KEY",
]


def found(name: str) -> Any:
    """What is at a dotted name."""
    module, *rest = name.split(".")
    value: Any = importlib.import_module(module)
    for step in rest:
        module = f"{module}.{step}"
        if not hasattr(value, step):
            try:
                importlib.import_module(module)
            except ImportError:
                pytest.fail(
                    f"OpenTelemetry has no {name} any more: mend otel_audit/records/sdk.py or suppression.py, "
                    "or bound the release in pyproject.toml"
                )
        value = getattr(value, step)
    return value


@pytest.mark.parametrize("name", NAMES)
def test_what_is_imported_is_where_it_was(name: str) -> None:
    assert found(name) is not None


def test_every_name_of_the_one_place_is_looked_at() -> None:
    looked_at = {step for name in NAMES for step in name.split(".")}
    theirs = {name for name in otel_logs.__all__ if getattr(otel_logs, name).__module__ != otel_logs.__name__}

    assert theirs
    assert theirs - looked_at == set()


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_a_record_is_made_of_the_same_arguments(name: str, arguments: str) -> None:
    missing = set(arguments.split()) - set(inspect.signature(found(name)).parameters)

    assert not missing, f"{name} no longer takes {sorted(missing)}: mend otel_audit/records/sdk.py"


@pytest.mark.parametrize(("name", "methods"), ABSTRACT)
def test_a_plug_in_has_no_more_methods_to_write(name: str, methods: set[str]) -> None:
    more = set(found(name).__abstractmethods__) - methods

    assert not more, f"{name} asks for {sorted(more)} too: write them in otel_audit/integrations/otel_logs.py"
