"""What Feast's audit logger accepts, ours accepts: models, parameters, defaults, factory."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from calls import events
from feast.audit import audit_logger as theirs
from feast.infra.feature_servers.base_config import AuditLoggingConfig
from hypothesis import given, settings
from pydantic import BaseModel

import otel_audit as ours

MODELS = ["AuditPrincipal", "AuditSource", "AuditAction", "AuditResource", "AuditEvent"]
CLASSES = ["AuditSink", "StdoutAuditSink", "FileAuditSink", "LoggerAuditSink", "AuditLogger"]


def public_names(holder: Any) -> set[str]:
    return {name for name in vars(holder) if not name.startswith("_")}


def defined_by_feast() -> set[str]:
    own = {name for name in public_names(theirs) if getattr(getattr(theirs, name), "__module__", "") == theirs.__name__}
    return own | {"mcp_audit_request_id"}


def test_everything_public_in_feasts_module_is_here() -> None:
    assert {*MODELS, *CLASSES, "create_audit_logger_from_config"} <= defined_by_feast()
    assert defined_by_feast() <= set(ours.__all__)


@pytest.mark.parametrize("name", MODELS)
def test_the_fields_of_a_model_come_first_in_the_same_order_with_the_same_types_and_defaults(name: str) -> None:
    expected: dict[str, Any] = getattr(theirs, name).model_fields
    got: dict[str, Any] = getattr(ours, name).model_fields

    assert list(got)[: len(expected)] == list(expected)
    for field, info in expected.items():
        assert got[field].is_required() == info.is_required(), field
        if not info.is_required():
            assert plain(got[field].get_default(call_default_factory=True), field) == plain(
                info.get_default(call_default_factory=True), field
            )
    assert all(not got[field].is_required() for field in list(got)[len(expected) :])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_and_refuses_the_same_types_in_its_fields(name: str) -> None:
    expected = getattr(theirs, name).model_json_schema()["properties"]
    got = getattr(ours, name).model_json_schema()["properties"]

    assert {field: shape(got[field]) for field in expected} == {field: shape(expected[field]) for field in expected}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_mutable_and_ignores_unknown_fields_like_feasts(name: str) -> None:
    required = {"event_type": "x"} if name == "AuditEvent" else {}
    for module in (theirs, ours):
        model: BaseModel = getattr(module, name)(**required, no_such_field=1)
        first = next(iter(type(model).model_fields))
        setattr(model, first, "changed")
        assert getattr(model, first) == "changed"
        assert "no_such_field" not in model.model_dump()


@settings(max_examples=100, deadline=None)
@given(events)
def test_an_event_has_the_same_values_field_by_field(fields: dict[str, Any]) -> None:
    fields = {name: dict(value.fields) if hasattr(value, "fields") else value for name, value in fields.items()}

    expected = theirs.AuditEvent(**fields).model_dump(exclude_none=True)
    got = ours.AuditEvent(**fields).model_dump(exclude_none=True)

    assert repr(got) == repr(expected)  # a NaN is not equal to itself


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_exists(name: str) -> None:
    assert public_names(getattr(theirs, name)) <= public_names(getattr(ours, name)) | public_names(ours.AuditSink)


def callables() -> list[tuple[str, Any, Any]]:
    pairs = [("create_audit_logger_from_config", theirs, ours)]
    for name in CLASSES:
        holders = getattr(theirs, name), getattr(ours, name)
        methods = sorted(public_names(holders[0]) | ({"__init__"} & set(vars(holders[0]))))
        pairs += [(method, *holders) for method in methods if callable(getattr(holders[0], method))]
    return pairs


@pytest.mark.parametrize(
    ("name", "their_holder", "our_holder"), callables(), ids=lambda value: getattr(value, "__name__", value)
)
def test_each_parameter_is_accepted_in_the_same_way_with_the_same_default(
    name: str, their_holder: Any, our_holder: Any
) -> None:
    expected = inspect.signature(getattr(their_holder, name)).parameters
    got = inspect.signature(getattr(our_holder, name)).parameters

    for parameter in expected.values():
        ours_of_it = got[parameter.name]
        assert ours_of_it.kind == parameter.kind
        if parameter.name == "request_id":
            assert ours_of_it.default in ("", inspect.Parameter.empty)
        else:
            assert ours_of_it.default == parameter.default, parameter.name
    added = [got[key] for key in got if key not in expected]
    assert all(one.default is not inspect.Parameter.empty for one in added)
    positional = [key for key, one in got.items() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional[: len(expected)] == [
        key for key, one in expected.items() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]


@pytest.mark.parametrize("module", [theirs, ours], ids=["theirs", "ours"])
def test_the_sink_class_cannot_be_made_without_emit_and_needs_no_close(module: Any) -> None:
    with pytest.raises(TypeError):
        module.AuditSink()

    class Emitting(module.AuditSink):  # type: ignore[misc]
        def emit(self, event: object) -> None: ...

    Emitting().close()


@pytest.mark.parametrize("module", [theirs, ours], ids=["theirs", "ours"])
@pytest.mark.parametrize(
    "absent", [None, AuditLoggingConfig(enabled=False), SimpleNamespace(), SimpleNamespace(enabled=None)], ids=repr
)
def test_the_factory_gives_none_when_audit_logging_is_absent_or_off(module: Any, absent: Any) -> None:
    assert module.create_audit_logger_from_config(absent) is None


@pytest.mark.parametrize("sink", ["stdout", "logger", "file"])
@pytest.mark.parametrize("reads", [True, False])
def test_the_factory_makes_the_same_logger_from_feasts_own_configuration(
    sink: Any, reads: bool, tmp_path: Path
) -> None:
    config = AuditLoggingConfig(enabled=True, sink=sink, file_path=str(tmp_path / "a.log"), log_successful_reads=reads)
    made = [module.create_audit_logger_from_config(config) for module in (theirs, ours)]

    their_logger, our_logger = made
    assert type(our_logger._sink).__name__ == type(their_logger._sink).__name__
    assert our_logger._log_successful_reads == their_logger._log_successful_reads == reads
    if sink == "file":
        for logger in made:
            logger.log_authn(request_id="r", outcome="success")
            logger.close()
        assert len((tmp_path / "a.log").read_text().splitlines()) == 2


def test_the_factory_reads_by_attribute_and_has_feasts_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (theirs, ours):
        logger = module.create_audit_logger_from_config(SimpleNamespace(enabled=True, sink="file"))
        logger.close()
        (tmp_path / "feast_audit.log").unlink()

        plain_logger = module.create_audit_logger_from_config(SimpleNamespace(enabled=True))
        assert type(plain_logger._sink).__name__ == "StdoutAuditSink"
        assert plain_logger._log_successful_reads is True

        named = module.create_audit_logger_from_config(SimpleNamespace(enabled=1, sink="logger", logger_name="mine"))
        assert named._sink._logger is logging.getLogger("mine")


@pytest.mark.parametrize("module", [theirs, ours], ids=["theirs", "ours"])
def test_an_unknown_sink_warns_and_is_stdout(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        logger = module.create_audit_logger_from_config(SimpleNamespace(enabled=True, sink="kafka"))

    assert type(logger._sink).__name__ == "StdoutAuditSink"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "kafka" in record.getMessage()


def test_a_sink_gets_a_completed_copy_of_our_own_class_whatever_was_logged() -> None:
    class Kept(ours.AuditSink):
        def __init__(self) -> None:
            self.events: list[Any] = []

        def emit(self, event: Any) -> None:
            self.events.append(event)

    sink = Kept()
    logger = ours.AuditLogger(sink)
    logged = [theirs.AuditEvent(event_type="a"), ours.AuditEvent(event_type="b")]

    for event in (*logged, "no event"):
        receipt = logger.log(event)

        assert receipt is not None
        assert (receipt.event_id, receipt.seq) == (None, None)

    assert [type(event) for event in sink.events] == [ours.AuditEvent] * 3
    assert [event.event_type for event in sink.events] == ["a", "b", "unknown"]
    assert all(event.request_id and event.timestamp for event in sink.events)
    assert not any(event.request_id or event.timestamp for event in logged)


def test_what_the_handler_of_an_mcp_server_sets_is_a_variable_of_ours() -> None:
    assert ours.mcp_audit_request_id is not theirs.mcp_audit_request_id


def plain(value: Any, field: str) -> Any:
    """A default as plain data: of a part, the fields that Feast's has."""
    if not isinstance(value, BaseModel):
        return value
    known = getattr(theirs, type(value).__name__).model_fields
    return {name: item for name, item in value.model_dump().items() if name in known}


def shape(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("title", "description")}
