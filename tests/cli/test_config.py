"""`otel-audit config` says what is in force and where it came from; docs/settings.md is made from the same table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli.config import config, settings_markdown
from otel_audit.settings.table import TABLE

ENVIRON = {
    "XDG_STATE_HOME": "/state",
    "OTEL_AUDIT_FILE_MODE": "0640",
    "OTEL_SDK_DISABLED": "true",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://ann:s3cret@localhost:4318",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20s3cret",
}


def run(*arguments: str, environ: Mapping[str, str] = ENVIRON) -> Result:
    """The command with these variables of OTel and no others."""
    others = {name: None for name in os.environ if name.startswith("OTEL_")}
    return CliRunner().invoke(config, arguments, env={**others, **environ})


def test_each_setting_is_printed_with_value_unit_and_source(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("batch_count: 64\n")

    result = run(environ={**ENVIRON, "OTEL_AUDIT_CONFIG": f"{tmp_path}/a.yaml"})

    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in result.stdout.splitlines()}
    assert result.exit_code == 0
    assert lines.keys() >= {setting.name for setting in TABLE}
    assert lines["batch_count"] == f"64 events {tmp_path}/a.yaml:1:1"
    assert lines["batch_delay_s"] == "1 s default"
    assert lines["file_mode"] == "0640 octal environment OTEL_AUDIT_FILE_MODE"
    assert lines["export"] == "otlp default, as an OTLP endpoint is set"
    assert lines["insecure"] == "- not used: only for grpc"
    assert lines["service_name"] == "unknown_service default"
    assert lines["ignored:"].startswith("OTEL_SDK_DISABLED")


def test_config_says_whether_opentelemetry_instrument_changes_something(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("endpoint: http://c:4318\nprotocol: http/protobuf\n")
    in_file = {"OTEL_AUDIT_CONFIG": f"{tmp_path}/a.yaml"}
    kept = {**in_file, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}

    says = [json.loads(run("--json", environ=each).stdout)["instrument"] for each in ({}, kept, in_file)]

    assert says[0] == ["under opentelemetry-instrument export is none too"]
    assert says[1] == ["under opentelemetry-instrument export is otlp too"]
    assert says[2][0].startswith("under opentelemetry-instrument the protocol would be grpc: opentelemetry-distro sets")
    assert run(environ=in_file).stdout.splitlines()[-1] == says[2][0]


def test_json_has_typed_values_and_their_sources() -> None:
    printed = json.loads(run("--json").stdout)

    assert list(printed["settings"]) == [setting.name for setting in TABLE]
    assert printed["settings"]["batch_count"] == {
        "value": 2048,
        "unit": "events",
        "origin": "default",
        "where": None,
        "variables": ["OTEL_AUDIT_BATCH_COUNT", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"],
    }
    assert printed["settings"]["file_mode"]["value"] == "0640"
    assert printed["settings"]["insecure"]["value"] is None
    assert printed["ignored"] == ["OTEL_SDK_DISABLED"]


def test_secrets_are_masked_and_what_surrounds_them_is_shown() -> None:
    for arguments in ((), ("--json",)):
        output = run(*arguments).output
        assert "s3cret" not in output
        assert "http://****@localhost:4318/v1/logs" in output
        assert "authorization=****" in output


def test_what_has_no_value_says_what_that_means(tmp_path: Path) -> None:
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in run().stdout.splitlines()}

    assert lines["directory_bytes"] == "none: the disk is the limit default"
    assert lines["keep_attributes"] == "all default"
    assert lines["trusted_proxies"] == lines["redact_patterns"] == lines["policy"] == "none default"
    assert lines["certificate"] == "the system's CAs default"
    (tmp_path / "a.yaml").write_text("keep_attributes: []\n")
    nothing_kept = run(environ={**ENVIRON, "OTEL_AUDIT_CONFIG": f"{tmp_path}/a.yaml"}).stdout
    assert "keep_attributes       none " in nothing_kept


def test_wrong_keys_for_pseudonyms_are_found_as_they_are_at_the_start_of_a_service(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("no key\n")
    keys.chmod(0o600)

    result = run(environ={**ENVIRON, "OTEL_AUDIT_PSEUDONYM_KEYS": str(keys)})

    assert result.exit_code == 2
    assert f"otel-audit config: {keys}" in result.stderr


def test_a_token_in_the_query_of_the_endpoint_is_masked() -> None:
    environ = {**ENVIRON, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://localhost/v1/logs?key=s3cret#s3cret"}
    for arguments in ((), ("--json",)):
        output = run(*arguments, environ=environ).output
        assert "s3cret" not in output
        assert "https://localhost/v1/logs?****" in output


def test_a_wrong_setting_ends_with_code_2_and_its_message_on_stderr() -> None:
    result = run(environ={"OTEL_AUDIT_BATCH_COUNT": "x"})

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "OTEL_AUDIT_BATCH_COUNT: expected a whole number from 1 to 10000, got 'x' (environment)" in result.stderr


def test_a_service_without_otlp_is_told_that_its_settings_are_not_used() -> None:
    lines = run(environ={"OTEL_AUDIT_EXPORT": "jsonl"}).stdout.splitlines()

    assert next(line for line in lines if line.startswith("endpoint ")).endswith("not used: export has no otlp")


def test_the_document_of_settings_is_the_one_the_table_makes() -> None:
    document = Path(__file__).parents[2] / "docs" / "settings.md"

    if document.read_text(encoding="utf-8") != settings_markdown():
        pytest.fail("docs/settings.md is old; run: otel-audit config --markdown > docs/settings.md")
    assert run("--markdown").stdout == settings_markdown()


def test_what_has_no_effect_beside_the_durability_is_said_so() -> None:
    by_durability = {
        durability: {
            line.split()[0]
            for line in run(environ={**ENVIRON, "OTEL_AUDIT_DURABILITY": durability}).stdout.splitlines()
            if line.endswith(f"; not used: durability is {durability}")
        }
        for durability in ("os", "memory")
    }

    assert by_durability["os"] == {"queue_bytes"}
    assert by_durability["memory"] == {"retention_days", "retention_bytes"}


def test_memory_without_an_exporter_ends_with_code_2() -> None:
    result = run(environ={"OTEL_AUDIT_DURABILITY": "memory"})

    assert result.exit_code == 2
    assert "expected an exporter beside durability=memory" in result.stderr
