"""`install()` gives Feast's own audit loggers a sink that journals, whatever sink their configuration names."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feast.audit import audit_logger
from feast.feature_server import get_app
from feast.infra.feature_servers.base_config import AuditLoggingConfig
from feature_store import a_feature_store

from otel_audit.errors import ConfigError
from otel_audit.integrations.asgi import AuditMiddleware
from otel_audit.integrations.feast import HOOKS, FeastSink, install, uninstall
from tests.chain_check import application_events, read_streams
from tests.recording import recorder

SINKS = sorted(audit_logger._SINK_FACTORIES)
TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2


@pytest.fixture(autouse=True)
def _nothing_stays_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "feast")
    yield
    uninstall()


def feasts_logger(**config: Any) -> audit_logger.AuditLogger:
    made = audit_logger.create_audit_logger_from_config(AuditLoggingConfig(enabled=True, **config))
    assert made is not None
    return made


@pytest.mark.parametrize("sink", SINKS)
def test_events_go_to_the_journal_whichever_sink_the_configuration_names(
    tmp_path: Path, sink: str, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "feast_audit.log"
    install(directory=tmp_path / "audit", export="none")

    audit = feasts_logger(sink=sink, file_path=str(log))
    audit.log_http_request(request_id="r1", method="POST", path="/push")
    audit.close()

    [event] = application_events(tmp_path / "audit")
    assert (event["request_id"], event["action"]["path"]) == ("r1", "/push")
    assert event["event_id"]
    assert not log.exists()
    assert capfd.readouterr().out == ""


def test_the_configuration_still_says_whether_successful_reads_are_recorded(tmp_path: Path) -> None:
    install(directory=tmp_path, export="none")
    audit = feasts_logger(log_successful_reads=False)

    audit.log_mcp_call(request_id="r1", tool_name="get_online_features")
    audit.log_mcp_call(request_id="r2", tool_name="get_online_features", outcome="mcp_error")

    assert [event["request_id"] for event in application_events(tmp_path)] == ["r2"]


def test_secrets_in_feasts_events_are_removed(tmp_path: Path) -> None:
    install(directory=tmp_path, export="none")

    feasts_logger().log_authn(request_id="r1", outcome="failure", detail=f"no such token: {TOKEN}")

    [event] = application_events(tmp_path)
    assert event["redacted"] == ["$.detail"]
    assert TOKEN not in json.dumps(event)


def test_the_event_that_feast_hands_over_is_not_changed(tmp_path: Path) -> None:
    install(directory=tmp_path, export="none")
    event = audit_logger.AuditEvent(event_type="own", timestamp="2026-01-01T00:00:00.000Z", request_id="r1")
    before = event.model_copy(deep=True)

    feasts_logger().log(event)

    assert event == before


def test_a_second_install_changes_nothing(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        assert install(audit) is audit
        factories = dict(audit_logger._SINK_FACTORIES)

        assert install() is audit
        assert install(audit) is audit

        assert factories == audit_logger._SINK_FACTORIES
        feasts_logger().log_authz(request_id="r1", outcome="allow")
    assert len(application_events(tmp_path)) == 1


def test_another_logger_or_settings_for_one_are_refused_while_one_is_installed(tmp_path: Path) -> None:
    with recorder(tmp_path / "a") as audit, recorder(tmp_path / "b") as other:
        install(audit)

        for given in ({"audit": other}, {"export": "none"}):
            with pytest.raises(ConfigError, match=r"expected the installed logger or none.*uninstall"):
                install(**given)

        assert install() is audit


def test_a_logger_and_settings_for_one_are_refused(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit, pytest.raises(ConfigError, match=r"audit or settings, got both \(export\)"):
        install(audit, export="none")


def test_uninstall_gives_feast_its_own_sinks_back(tmp_path: Path) -> None:
    before = dict(audit_logger._SINK_FACTORIES)
    install(directory=tmp_path / "audit", export="none")

    uninstall()
    uninstall()

    assert before == audit_logger._SINK_FACTORIES
    audit = feasts_logger(sink="file", file_path=str(tmp_path / "feast_audit.log"))
    audit.log_authz(request_id="r1", outcome="allow")
    audit.close()
    assert "authz.decision" in (tmp_path / "feast_audit.log").read_text(encoding="utf-8")
    assert application_events(tmp_path / "audit") == []


def test_a_logger_of_the_callers_is_left_open_by_uninstall(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        install(audit)
        feasts_logger().log_authz(request_id="r1", outcome="allow")

        uninstall()

        audit.log(audit_logger.AuditEvent(event_type="own"))
        assert len(read_streams(tmp_path)) == 1


def test_the_last_application_closes_the_logger(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        install(audit)
        one, two, idle = feasts_logger(), feasts_logger(), feasts_logger()
        one.log_authz(request_id="r1", outcome="allow")
        two.log_authz(request_id="r2", outcome="allow")

        one.close()
        two.log_authz(request_id="r3", outcome="allow")
        assert len(read_streams(tmp_path)) == 1

        two.close()
        two.close()
        idle.close()
        idle.log_authz(request_id="r4", outcome="allow")
        assert len(read_streams(tmp_path)) == 2
    assert [event["request_id"] for event in application_events(tmp_path)] == ["r1", "r2", "r3", "r4"]


@pytest.mark.parametrize("table", [None, {}])
def test_a_release_without_the_hook_is_refused_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: object
) -> None:
    monkeypatch.setattr(audit_logger, "_SINK_FACTORIES", table)

    with pytest.raises(ConfigError, match=r"such as 0\.67\.0, got Feast 0\.67\.0 without it; install feast==0\.67\.0"):
        install(directory=tmp_path / "audit", export="none")

    assert not (tmp_path / "audit").exists()


def test_a_release_without_the_module_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "feast.audit.audit_logger", None)

    with pytest.raises(ConfigError, match=r"expected a release of Feast with feast\.audit\.audit_logger\."):
        install(directory=tmp_path / "audit", export="none")

    assert not (tmp_path / "audit").exists()


def hooks() -> dict[str, object]:
    return {module: getattr(importlib.import_module(module), name) for module, name in HOOKS.items()}


def test_uninstall_gives_feast_its_own_middleware_and_wrapper_back(tmp_path: Path) -> None:
    before = hooks()
    with recorder(tmp_path) as audit:
        install(audit, replace=True)
        assert all(hooks()[module] is not before[module] for module in HOOKS)

        uninstall()

        assert hooks() == before


@pytest.mark.parametrize("replace", [True, False])
def test_another_way_of_recording_is_refused_while_one_is_installed(tmp_path: Path, replace: bool) -> None:
    with recorder(tmp_path) as audit:
        install(audit, replace=replace)
        assert install(replace=replace) is audit

        with pytest.raises(ConfigError, match=f"expected replace={replace} as installed, got {not replace}"):
            install(replace=not replace)


@pytest.mark.parametrize("module", HOOKS)
def test_nothing_is_replaced_in_a_release_without_one_of_the_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.delattr(f"{module}.{HOOKS[module]}")
    factories = dict(audit_logger._SINK_FACTORIES)

    with pytest.raises(ConfigError, match=re.escape(f"{module}.{HOOKS[module]}")):
        install(replace=True, directory=tmp_path / "audit", export="none")

    assert not (tmp_path / "audit").exists()
    assert factories == audit_logger._SINK_FACTORIES


def test_a_filter_that_would_have_no_effect_stops_the_start(tmp_path: Path) -> None:
    store = a_feature_store(tmp_path / "store", log_successful_reads=False)
    with recorder(tmp_path / "audit") as audit:
        install(audit, replace=True)

        with pytest.raises(ConfigError, match=r"log_successful_reads: expected true.*OTEL_AUDIT_POLICY"):
            get_app(store)


def test_without_audit_logging_in_the_configuration_nothing_is_recorded(tmp_path: Path) -> None:
    store = a_feature_store(tmp_path / "store", enabled=False)
    with recorder(tmp_path / "audit") as audit:
        install(audit, replace=True)

        stack = get_app(store).build_middleware_stack()

    assert not isinstance(stack, AuditMiddleware)


def test_the_sink_is_one_of_feasts_kind() -> None:
    abstract = {name for name in vars(audit_logger.AuditSink) if not name.startswith("_")}

    assert {name for name in vars(FeastSink) if not name.startswith("_")} == abstract
