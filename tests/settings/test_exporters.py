"""Who exports, to which endpoint, and with which queue and retention, by what the service says to OTel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from otel_audit.settings import Durability, Settings
from otel_audit.settings.settings import IGNORED_VARIABLES
from tests.setting_examples import HOME, refusal

NO_ENDPOINT = "otlp in OTEL_LOGS_EXPORTER has no endpoint"
MEMORY = {**HOME, "OTEL_AUDIT_DURABILITY": "memory", "OTEL_AUDIT_EXPORT": "console"}


@pytest.mark.parametrize("export", ["none", "ship", ""])
def test_memory_without_an_exporter_is_refused_with_the_reason(export: str) -> None:
    message = refusal({"OTEL_AUDIT_DURABILITY": "memory", "OTEL_AUDIT_EXPORT": export})

    assert "expected an exporter beside durability=memory" in message
    assert f"got '{export or 'none'}'" in message
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in message


def test_memory_with_exporters_of_ones_own_needs_no_others() -> None:
    settings = Settings.load({**HOME, "OTEL_AUDIT_DURABILITY": "memory"}, own_exporters=True)

    assert settings.durability is Durability.MEMORY


@pytest.mark.parametrize("environ", [HOME, MEMORY], ids=["os", "memory"])
def test_a_size_of_the_queue_in_events_is_accepted_and_said_to_have_no_effect(environ: Mapping[str, str]) -> None:
    of_the_sdk = Settings.load({**environ, "OTEL_BLRP_MAX_QUEUE_SIZE": "many"})
    of_ours = Settings.load({**environ, "OTEL_AUDIT_QUEUE_SIZE": "9"})
    in_code = Settings.load(environ, {"queue_size": 9})

    assert of_the_sdk.ignored == ("OTEL_BLRP_MAX_QUEUE_SIZE",)
    assert of_ours.ignored == ("OTEL_AUDIT_QUEUE_SIZE",)
    assert in_code.ignored == ("queue_size",)
    assert "queue_bytes" in IGNORED_VARIABLES["queue_size"]


def test_in_memory_mode_a_copy_is_not_written_into_memory() -> None:
    settings = Settings.load({**MEMORY, "OTEL_AUDIT_EXPORT": "jsonl"})

    assert not settings.jsonl_path.is_relative_to(settings.directory)
    assert settings.jsonl_path.is_relative_to(HOME["HOME"])


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://h:1/v1/logs?key=s3cret",
        "ftp://ann:s3cret@h/?a=s3cret#s3cret",
        "http://h:1/x?key=s3cret",
        "https://ann:s3cret@host:99999",
        "ann:s3cret@host:4318",
        "ann:s3/cret@s3cret@host:4318",
    ],
)
def test_a_wrong_endpoint_is_shown_without_its_password_and_query(endpoint: str) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}

    refused = refusal(environ)

    assert "s3cret" not in refused
    assert "h" in refused.partition("got '")[2].partition("?****'")[0]


@pytest.mark.parametrize("words", ["otlp,otlp", "otlp,none", "ship,console", "otlp,", "stdout", ","])
def test_exporters_are_named_once_and_none_and_ship_stand_alone(words: str) -> None:
    assert "OTEL_AUDIT_EXPORT: expected a comma list of" in refusal({"OTEL_AUDIT_EXPORT": words})


@pytest.mark.parametrize(
    ("environ", "overrides", "export", "why"),
    [
        ({}, {}, "none", "default"),
        ({"OTEL_LOGS_EXPORTER": "console"}, {}, "console", "environment OTEL_LOGS_EXPORTER"),
        ({"OTEL_LOGS_EXPORTER": "otlp"}, {}, "none", f"default, as {NO_ENDPOINT}"),
        ({"OTEL_LOGS_EXPORTER": "console,otlp"}, {}, "console", f"default, as {NO_ENDPOINT}"),
        (
            {"OTEL_LOGS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:1"},
            {},
            "none",
            f"default, as {NO_ENDPOINT}",
        ),
        (
            {"OTEL_LOGS_EXPORTER": "console,otlp", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1"},
            {},
            "console,otlp",
            "environment OTEL_LOGS_EXPORTER",
        ),
        ({"OTEL_AUDIT_EXPORT": "otlp", "OTEL_LOGS_EXPORTER": "otlp"}, {}, "otlp", "environment OTEL_AUDIT_EXPORT"),
        ({"OTEL_LOGS_EXPORTER": "None"}, {}, "none", "environment OTEL_LOGS_EXPORTER"),
        ({"OTEL_LOGS_EXPORTER": "otel_audit"}, {}, "none", "default"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1"}, {}, "otlp", "default, as an OTLP endpoint is set"),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1"}, {}, "otlp", "default, as an OTLP endpoint is set"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:1"}, {}, "none", "default"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_LOGS_EXPORTER": "none"},
            {},
            "none",
            "environment OTEL_LOGS_EXPORTER",
        ),
        ({"OTEL_LOGS_EXPORTER": "none"}, {"endpoint": "http://c:1"}, "otlp", "default, as code sets an endpoint"),
        (
            {"OTEL_LOGS_EXPORTER": "none", "OTEL_AUDIT_EXPORT": "jsonl"},
            {"endpoint": "http://c:1"},
            "jsonl",
            "environment OTEL_AUDIT_EXPORT",
        ),
    ],
)
def test_exporters_follow_from_what_the_service_says_to_otel(
    environ: dict[str, str], overrides: dict[str, object], export: str, why: str
) -> None:
    settings = Settings.load({**HOME, **environ}, overrides)

    assert ",".join(settings.export) == export
    assert str(settings.sources["export"]) == why


def test_otlp_in_otel_logs_exporter_without_an_endpoint_is_ignored_and_said() -> None:
    by_distro = {**HOME, "OTEL_LOGS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}

    settings = Settings.load(by_distro)

    assert settings.ignored == ("OTEL_LOGS_EXPORTER",)
    assert settings.retention_days == 400  # the journal has the only copy
    assert settings.otlp is None
    assert Settings.load({**by_distro, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1"}).ignored == ()
    assert Settings.load({**by_distro, "OTEL_AUDIT_EXPORT": "otlp"}).ignored == ()
    assert Settings.load(by_distro, {"endpoint": "http://c:1"}).ignored == ()


def test_an_endpoint_in_the_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("endpoint: http://c:1\n")

    settings = Settings.load({**HOME, "OTEL_LOGS_EXPORTER": "otlp", "OTEL_AUDIT_CONFIG": f"{tmp_path}/a.yaml"})

    assert settings.export == ("otlp",)


def test_a_word_of_otel_logs_exporter_that_we_do_not_know_stops_start_up_and_names_our_variable() -> None:
    message = refusal({"OTEL_LOGS_EXPORTER": "otlp_proto_http"})

    assert message.startswith("OTEL_LOGS_EXPORTER: expected a comma list of otlp, console, or none alone, got ")
    assert message.endswith("set OTEL_AUDIT_EXPORT, which wins over it")


def test_a_password_in_an_endpoint_is_not_in_the_message_about_it() -> None:
    message = refusal({"OTEL_AUDIT_EXPORT": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://ann:p/w@c.example:4317"})

    assert "got 'ftp://****@c.example:4317' (environment)" in message


def test_what_has_another_copy_is_kept_a_month_and_the_only_one_for_more_than_a_year() -> None:
    delivered = Settings.load({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    alone = Settings.load({"OTEL_AUDIT_EXPORT": "none"})
    for_ever = Settings.load({"OTEL_AUDIT_EXPORT": "none", "OTEL_AUDIT_RETENTION_DAYS": "0"})

    assert (delivered.retention_days, alone.retention_days, for_ever.retention_days) == (30, 400, 0)
