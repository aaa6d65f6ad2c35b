"""From the environment to a logger that works, and to a process that ends."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk.resources import Resource

import otel_audit
from otel_audit.errors import ConfigError, JournalUnwritable
from otel_audit.settings import OnLoss, Settings
from tests.chain_check import application_events, read_streams
from tests.servers.otlp_server import OtlpServer


@pytest.fixture(autouse=True)
def no_variables_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def run(program: str, directory: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A process of its own that runs the program with the journal in the directory."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**plain, "OTEL_AUDIT_DIR": str(directory), "OTEL_SERVICE_NAME": "shop", **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def header(directory: Path) -> dict[str, Any]:
    (events,) = read_streams(directory).values()
    segment: dict[str, Any] = events[0]["segment"]
    return segment


def test_settings_come_from_the_environment_and_what_is_said_in_code_comes_first(
    no_variables_of_the_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_variables_of_the_machine.setenv("OTEL_AUDIT_DIR", str(tmp_path / "unused"))
    no_variables_of_the_machine.setenv("OTEL_AUDIT_LOG_SUCCESSFUL_READS", "false")

    audit = otel_audit.configure(directory=tmp_path / "used")
    read = audit.log_mcp_call(tool_name="get_online_features")
    kept = audit.log_mcp_call(tool_name="list_projects")
    audit.close()

    assert read is None
    assert kept is not None
    assert len(application_events(tmp_path / "used")) == 1
    assert not (tmp_path / "unused").exists()


def test_caps_of_the_settings_are_in_force(tmp_path: Path) -> None:
    audit = otel_audit.configure(directory=tmp_path, text_chars=200, attribute_count=2)
    audit.log(otel_audit.AuditEvent(event_type="x", reason="r" * 1000, attributes={"a": 1, "b": 2, "c": 3}))
    audit.close()

    (event,) = application_events(tmp_path)
    assert len(event["reason"]) == 200
    assert list(event["attributes"]) == ["a", "b"]
    assert event["truncated"] == ["$.attributes", "$.reason"]


@pytest.mark.processes
def test_the_resource_is_the_one_that_the_sdk_finds(tmp_path: Path) -> None:
    finished = run(
        "import otel_audit; otel_audit.configure().log_authn(outcome='success')",
        tmp_path,
        {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"},
    )

    assert finished.returncode == 0, finished.stderr
    resource = header(tmp_path)["resource"]
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("shop", "test")
    assert resource["service.instance.id"]


def test_a_resource_that_is_passed_in_replaces_it(tmp_path: Path) -> None:
    resource = Resource({"service.name": "till", "place": "counter"})

    audit = otel_audit.configure(resource=resource, directory=tmp_path)
    audit.log_authn(outcome="success")
    audit.close()

    found = header(tmp_path)["resource"]
    assert (found["service.name"], found["place"]) == ("till", "counter")


def test_a_service_that_is_named_in_code_is_named_in_its_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
    audit = otel_audit.configure(service_name="shop", directory=tmp_path)
    audit.log_authn(outcome="success")
    audit.close()

    assert header(tmp_path)["resource"]["service.name"] == "shop"
    with pytest.raises(ConfigError, match="service_name: expected a name, got ''"):
        otel_audit.configure(service_name="", directory=tmp_path)


@pytest.mark.parametrize(
    ("mode", "above", "words"),
    [
        (0o777, 0o700, "every user can remove and replace its files; chmod o-rwx "),
        (0o1777, 0o700, "every user can put files into it, which are taken for events; chmod o-rwx "),
        (0o700, 0o777, "every user can put another directory in its place; chmod o-w "),
        (0o700, 0o1777, ""),
        (0o2770, 0o755, ""),
    ],
)
def test_a_directory_that_every_user_can_write_is_said_at_start(
    tmp_path: Path, mode: int, above: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "state" / "audit"
    directory.mkdir(parents=True)
    directory.chmod(mode)
    directory.parent.chmod(above)

    otel_audit.configure(service_name="shop", directory=directory, file_mode=0o660).close()

    said = capsys.readouterr().err
    assert words in said
    assert bool(said) is bool(words)


def test_a_wrong_setting_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_count"):
        otel_audit.configure(directory=tmp_path / "made", batch_count=0)

    assert not (tmp_path / "made").exists()


def test_a_policy_is_in_force_and_its_hash_in_the_header_of_each_segment(
    no_variables_of_the_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{type: authn.success, keep: false}, {type: x, level: metadata}]")
    no_variables_of_the_machine.setenv("OTEL_AUDIT_POLICY", str(policy))
    audit = otel_audit.configure(directory=tmp_path / "journal", segment_bytes=4096)
    policy.unlink()  # it was read at the start

    for _ in range(20):
        audit.log_authn(outcome="success")
        audit.log(otel_audit.AuditEvent(event_type="x", detail="d", reason="r" * 500))
    stats = audit.stats()
    audit.close()

    assert (stats.emitted, stats.filtered) == (20, 20)
    (events,) = read_streams(tmp_path / "journal").values()
    headers = [event["segment"] for event in events if event["event_type"] == "audit.segment"]
    assert len(headers) > 2
    sha256 = hashlib.sha256(b"rules: [{type: authn.success, keep: false}, {type: x, level: metadata}]").hexdigest()
    assert {segment["policy_hash"] for segment in headers} == {sha256}
    assert {event["detail"] for event in events if event["event_type"] == "x"} == {""}


def test_without_a_policy_a_header_names_none(tmp_path: Path) -> None:
    audit = otel_audit.configure(directory=tmp_path)
    audit.log_authn(outcome="success")
    audit.close()

    assert "policy_hash" not in header(tmp_path)


def test_a_policy_that_is_not_there_starts_nothing(
    no_variables_of_the_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_variables_of_the_machine.setenv("OTEL_AUDIT_POLICY", str(tmp_path / "none.yaml"))

    with pytest.raises(ConfigError, match=r"OTEL_AUDIT_POLICY: expected .* got '.*none\.yaml': No such file"):
        otel_audit.configure(directory=tmp_path / "made")

    assert not (tmp_path / "made").exists()


def test_a_broken_policy_starts_nothing_and_says_where_it_is_wrong(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules:\n  - type: x\n    level: sumary\n")

    with pytest.raises(ConfigError, match=r"policy\.yaml:3:12: \$\.rules\[0\]\.level: expected one of none, metadata"):
        otel_audit.configure(directory=tmp_path / "made", policy=policy)

    assert not (tmp_path / "made").exists()


def test_an_unknown_variable_of_ours_stops_the_start(
    no_variables_of_the_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_variables_of_the_machine.setenv("OTEL_AUDIT_DIRECTORY", str(tmp_path))

    with pytest.raises(ConfigError, match="OTEL_AUDIT_DIR"):
        otel_audit.configure()


def test_a_directory_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(JournalUnwritable, match="file"):
        otel_audit.configure(directory=tmp_path / "file" / "audit")


@pytest.mark.processes
def test_variables_without_effect_and_a_missing_name_are_said_at_start(tmp_path: Path) -> None:
    finished = run(
        "import otel_audit; otel_audit.configure().log_authn(outcome='success')",
        tmp_path,
        {"OTEL_SDK_DISABLED": "true", "OTEL_SERVICE_NAME": ""},
    )

    assert finished.returncode == 0
    assert "OTEL_SDK_DISABLED is set and has no effect" in finished.stderr
    assert "OTEL_SERVICE_NAME" in finished.stderr
    assert len(application_events(tmp_path)) == 1  # a variable does not switch an audit log off


@pytest.mark.processes
@pytest.mark.parametrize("end", ["", "raise ValueError", "import sys; sys.exit(3)", "import os; os._exit(0)"], ids=str)
def test_what_was_acknowledged_is_in_the_journal_however_the_program_ends(tmp_path: Path, end: str) -> None:
    program = f"""
        import otel_audit
        audit = otel_audit.configure()
        for number in range(100):
            assert audit.log_authn(outcome="success", detail=str(number)).durable
        {end}
        """

    run(program, tmp_path)

    assert [event["detail"] for event in application_events(tmp_path)] == [str(number) for number in range(100)]


@pytest.mark.processes
@pytest.mark.parametrize("end", ["", "raise ValueError", "import sys; sys.exit(3)"], ids=str)
def test_a_normal_end_delivers_what_is_left(tmp_path: Path, end: str) -> None:
    program = f"""
        import otel_audit
        audit = otel_audit.configure()
        for number in range(100):
            audit.log_authn(outcome="success", detail=str(number))
        {end}
        """
    with OtlpServer() as server:
        run(
            program,
            tmp_path,
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_AUDIT_BATCH_DELAY_S": "60",
            },
        )
        bodies = delivered(server)

    assert [body["detail"] for body in bodies if "system" not in body] == [str(number) for number in range(100)]


def delivered(server: OtlpServer) -> list[dict[str, Any]]:
    requests = [ExportLogsServiceRequest.FromString(request.body) for request in server.requests]
    return [
        json.loads(record.body.string_value)
        for request in requests
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def test_settings_make_a_logger_through_the_factory_too(tmp_path: Path) -> None:
    settings = Settings.load({}, {"directory": tmp_path, "on_loss": "closed"})

    audit = otel_audit.create_audit_logger_from_config(settings)
    assert audit is not None
    receipt = audit.log_authn(outcome="success")
    audit.close()

    assert settings.on_loss is OnLoss.CLOSED
    assert receipt is not None
    assert receipt.durable


def test_the_factory_makes_a_file_logger_from_feasts_configuration(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    config = SimpleNamespace(enabled=True, sink="file", file_path=str(path), log_successful_reads=False)

    audit = otel_audit.create_audit_logger_from_config(config)
    assert audit is not None
    audit.log_mcp_call(tool_name="get_online_features")
    audit.log_authn(outcome="success", request_id="r")
    audit.close()

    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["event_type"] == "authn.success"


@pytest.mark.parametrize("config", [None, SimpleNamespace(), SimpleNamespace(enabled=False)], ids=repr)
def test_the_factory_gives_none_where_audit_logging_is_off(config: Any) -> None:
    assert otel_audit.create_audit_logger_from_config(config) is None


def test_the_factory_warns_of_an_unknown_sink_and_takes_stdout(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        audit = otel_audit.create_audit_logger_from_config(SimpleNamespace(enabled=True, sink="kafka"))
    assert audit is not None
    audit.log_authn(outcome="success")

    assert "expected stdout, file or logger, got 'kafka'" in caplog.text
    assert json.loads(capsys.readouterr().out)["event_type"] == "authn.success"
