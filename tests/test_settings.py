"""Every setting: default, order of the places it may come from, what a wrong value is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from otel_audit.errors import ConfigError
from otel_audit.settings import (
    ClientInfo,
    Compression,
    Durability,
    ExporterName,
    ForwardedHeader,
    OnLoss,
    Origin,
    OtlpProtocol,
    Setting,
    Settings,
    Source,
)
from otel_audit.settings.names import RESERVED
from otel_audit.settings.otlp import OTLP_TABLE
from otel_audit.settings.service import default_directory, name_for_a_path
from otel_audit.settings.table import TABLE

HERE = str(Path(__file__).resolve())
HOME = {"HOME": "/home/alice", "XDG_STATE_HOME": "/home/alice/state"}
DEFAULT_DIRECTORY = Path("/home/alice/state/otel-audit/unknown_service")


@dataclass(frozen=True)
class Example:
    """One row: its default, a good value as text and as Python value, what both stand for, and a bad text."""

    default: object
    text: str
    code: object
    value: object
    bad: str


EXAMPLES = {
    "directory": Example(DEFAULT_DIRECTORY, "/srv/audit", Path("/srv/audit"), Path("/srv/audit"), "~/audit"),
    "durability": Example(Durability.OS, "fsync", Durability.FSYNC, Durability.FSYNC, "disk"),
    "export": Example(
        (ExporterName.NONE,),
        "console, jsonl",
        [ExporterName.CONSOLE, "jsonl"],
        (ExporterName.CONSOLE, ExporterName.JSONL),
        "none,jsonl",
    ),
    "on_loss": Example(OnLoss.OPEN, "CLOSED", OnLoss.CLOSED, OnLoss.CLOSED, "ajar"),
    "segment_bytes": Example(64 * 1024**2, "1 MiB", 1024**2, 1024**2, "4095"),
    "segment_age_s": Example(3600.0, "60", 60, 60.0, "0"),
    "retention_days": Example(400, "7", 7, 7, "-1"),
    "retention_bytes": Example(0, "2 GiB", 2 * 1024**3, 2 * 1024**3, "some"),
    "directory_bytes": Example(None, "2 GiB", 2 * 1024**3, 2 * 1024**3, "1 KiB"),
    "queue_size": Example(2048, "100", 100, 100, "0"),
    "queue_bytes": Example(32 * 1024**2, "1 MiB", 1024**2, 1024**2, "1 KiB"),
    "batch_count": Example(512, "100", 100, 100, "10001"),
    "batch_bytes": Example(3 * 1024**2, "1048576", 1024**2, 1024**2, "21 MiB"),
    "batch_delay_s": Example(1.0, "0.25", 0.25, 0.25, "nan"),
    "backoff_cap_s": Example(60.0, "5", 5, 5.0, "soon"),
    "close_timeout_s": Example(5.0, "0", 0, 0.0, "-1"),
    "text_chars": Example(2048, "1000", 1000, 1000, "1e3"),
    "attribute_count": Example(32, "1", 1, 1, "33"),
    "line_bytes": Example(65_536, "32kib", 32_768, 32_768, "256 KiB"),
    "file_mode": Example(0o600, "0660", 0o660, 0o660, "0606"),
    "jsonl_path": Example(
        DEFAULT_DIRECTORY / "export.jsonl", "/srv/e.jsonl", "/srv/e.jsonl", Path("/srv/e.jsonl"), " "
    ),
    "log_successful_reads": Example(True, "no", False, False, "perhaps"),
    "policy": Example(None, "/etc/p.yaml", "/etc/p.yaml", Path("/etc/p.yaml"), "~/p.yaml"),
    "trusted_proxies": Example(
        (), "10.0.0.0/8, ::1,unix", ["10.0.0.0/8", "::1", "unix"], ("10.0.0.0/8", "::1/128", "unix"), "10.0.0.0/8,*"
    ),
    "forwarded_header": Example(
        ForwardedHeader.X_FORWARDED_FOR, "Forwarded", ForwardedHeader.FORWARDED, ForwardedHeader.FORWARDED, "via"
    ),
    "redact_patterns": Example((), "EMP-[0-9]{2,6}\n a,b ", ["EMP-[0-9]{2,6}", "a,b"], ("EMP-[0-9]{2,6}", "a,b"), "a["),
    "redact_names": Example(
        (), "badge, employee_number", ["badge", "employee_number"], ("badge", "employee_number"), ","
    ),
    "keep_names": Example((), "session_id", ["session_id"], ("session_id",), "a,,b"),
    "keep_attributes": Example(None, "rows, http.*", ("rows", "http.*"), ("rows", "http.*"), ",rows"),
    "client_info": Example(ClientInfo.KEEP, "Truncate", ClientInfo.TRUNCATE, ClientInfo.TRUNCATE, "hash"),
    "pseudonym_keys": Example(None, HERE, HERE, Path(HERE), "~/keys"),
    "endpoint": Example(
        "http://localhost:4317", "https://c.example:4317", "https://c.example:4317", "https://c.example:4317", "c d"
    ),
    "protocol": Example(OtlpProtocol.GRPC, "grpc", OtlpProtocol.GRPC, OtlpProtocol.GRPC, "http/json"),
    "headers": Example((), "X-Key=a%20b", {"X-Key": "a b"}, (("x-key", "a b"),), "authorization: Bearer s3cret"),
    "timeout_s": Example(10.0, "2.5", 2.5, 2.5, "10s"),
    "compression": Example(Compression.NONE, "gzip", Compression.GZIP, Compression.GZIP, "zstd"),
    "certificate": Example(None, HERE, HERE, HERE, "/no/such/file"),
    "client_key": Example(None, HERE, Path(HERE), HERE, "/no/such/file"),
    "client_certificate": Example(None, HERE, HERE, HERE, "/no/such/file"),
    "insecure": Example(True, "false", False, False, "perhaps"),
}
EACH_SETTING = pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)


def companions(setting: Setting[object]) -> dict[str, str]:
    """What must be set besides, so that the setting is read at all."""
    if setting not in OTLP_TABLE:
        return {}
    more = {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": HERE} if setting.name == "client_key" else {}
    return {"OTEL_AUDIT_EXPORT": "otlp", **more}


def effective(settings: Settings, setting: Setting[object]) -> object:
    value: object = getattr(settings.otlp if setting in OTLP_TABLE else settings, setting.name)
    return value


def config_file(directory: Path, text: str) -> dict[str, str]:
    path = directory / "audit.yaml"
    path.write_text(text, encoding="utf-8")
    return {"OTEL_AUDIT_CONFIG": str(path)}


def refusal(environ: Mapping[str, str], **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.load({**HOME, **environ}, overrides)
    return str(caught.value)


def test_every_row_of_the_table_has_an_example_and_every_field_of_settings_a_row() -> None:
    names = [setting.name for setting in TABLE]
    assert list(EXAMPLES) == names
    core = set(Settings.__dataclass_fields__) - {"service_name", "otlp", "ignored", "sources"}
    assert core == {setting.name for setting in TABLE if setting not in OTLP_TABLE}


@EACH_SETTING
def test_a_setting_that_nobody_gives_has_its_default(setting: Setting[object]) -> None:
    settings = Settings.load({**HOME, **companions(setting)} if setting.name != "export" else HOME)

    assert effective(settings, setting) == EXAMPLES[setting.name].default
    assert settings.sources[setting.name].origin is Origin.DEFAULT
    assert setting.doc
    assert setting.reason


@EACH_SETTING
def test_a_setting_is_read_from_each_of_its_variables_and_the_first_wins(setting: Setting[object]) -> None:
    example = EXAMPLES[setting.name]
    given: dict[str, str] = {}
    for variable in reversed(setting.variables):
        given = dict.fromkeys(given, example.bad) | {variable.name: example.text}

        settings = Settings.load({**HOME, **companions(setting), **given})

        assert effective(settings, setting) == example.value
        assert settings.sources[setting.name] == Source(Origin.ENVIRONMENT, variable.name)


@EACH_SETTING
def test_a_value_in_code_wins_over_the_environment(setting: Setting[object]) -> None:
    example = EXAMPLES[setting.name]
    environ = {**HOME, **companions(setting), setting.variables[0].name: example.bad}

    for given in (example.code, example.text):
        settings = Settings.load(environ, {setting.name: given})

        assert effective(settings, setting) == example.value
        assert settings.sources[setting.name] == Source(Origin.CODE)


@EACH_SETTING
def test_a_value_in_the_file_is_used_when_no_variable_is_set(setting: Setting[object], tmp_path: Path) -> None:
    example = EXAMPLES[setting.name]
    in_file = config_file(tmp_path, f"# ours\n{setting.name}: {json.dumps(example.text)}\n")
    beside = {} if setting.name == "export" else companions(setting)

    from_file = Settings.load({**HOME, **beside, **in_file})
    from_environment = Settings.load({**HOME, **beside, **in_file, setting.variables[0].name: example.text})

    assert effective(from_file, setting) == example.value
    assert str(from_file.sources[setting.name]) == f"{tmp_path}/audit.yaml:2"
    assert from_environment.sources[setting.name].origin is Origin.ENVIRONMENT


@EACH_SETTING
def test_a_value_that_is_not_allowed_stops_start_up_and_says_expected_got_where_and_remedy(
    setting: Setting[object], tmp_path: Path
) -> None:
    bad, beside = EXAMPLES[setting.name].bad, companions(setting)
    variable = setting.variables[0].name
    in_file = config_file(tmp_path, f"{setting.name}: {json.dumps(bad)}\n")
    beside = {} if setting.name == "export" else beside
    shown = "a value that is not shown" if setting.secret else repr(bad)

    for message, label, place in (
        (refusal({**beside, variable: bad}), variable, "environment"),
        (refusal(beside, **{setting.name: bad}), setting.name, "code"),
        (refusal({**beside, **in_file}), setting.name, f"{tmp_path}/audit.yaml:1"),
    ):
        assert message.startswith(f"{label}: expected {setting.kind.expected}, got {shown} ({place}); ")
        assert not message.endswith("; ")


def test_the_message_about_a_value_reads_as_a_sentence() -> None:
    assert refusal({"OTEL_AUDIT_BATCH_COUNT": "x"}) == (
        "OTEL_AUDIT_BATCH_COUNT: expected a whole number from 1 to 10000, got 'x' (environment); "
        "correct it, or leave it out for the default: 512"
    )


@pytest.mark.parametrize("wrong", [True, 1.5, object(), b"5"], ids=repr)
def test_a_python_value_of_another_type_is_refused(wrong: object) -> None:
    for name in ("batch_count", "segment_bytes", "durability", "directory", "export", "headers", "certificate"):
        assert refusal({}, **{name: wrong}).startswith(f"{name}: expected ")


def test_none_in_code_an_empty_variable_and_an_empty_key_count_as_not_given(tmp_path: Path) -> None:
    environ = {**HOME, "OTEL_AUDIT_BATCH_COUNT": "", **config_file(tmp_path, "batch_count:\nbatch_bytes: ~\n")}

    settings = Settings.load(environ, {"batch_count": None})

    assert settings.batch_count == 512
    assert settings.sources["batch_count"] == Source(Origin.DEFAULT)


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


def test_the_queue_of_memory_mode_has_the_size_that_was_said_for_that_of_the_sdk() -> None:
    environ = {**MEMORY, "OTEL_BLRP_MAX_QUEUE_SIZE": "77"}

    assert Settings.load(MEMORY).queue_size == 2048
    assert Settings.load(environ).queue_size == 77
    assert Settings.load({**environ, "OTEL_AUDIT_QUEUE_SIZE": "9"}).queue_size == 9
    assert Settings.load(environ).ignored == ()


def test_the_size_of_the_sdks_queue_is_ignored_where_the_journal_is_on_disk() -> None:
    settings = Settings.load({**HOME, "OTEL_BLRP_MAX_QUEUE_SIZE": "many"})

    assert settings.queue_size == 2048
    assert settings.ignored == ("OTEL_BLRP_MAX_QUEUE_SIZE",)
    assert "OTEL_BLRP_MAX_QUEUE_SIZE: expected" in refusal({**MEMORY, "OTEL_BLRP_MAX_QUEUE_SIZE": "many"})


def test_an_unknown_variable_stops_start_up_and_names_the_closest_and_all_valid_ones() -> None:
    message = refusal({"OTEL_AUDIT_BACH_COUNT": "5"})

    assert message.startswith(
        "OTEL_AUDIT_BACH_COUNT: unknown setting (environment); did you mean OTEL_AUDIT_BATCH_COUNT"
    )
    for setting in TABLE:
        if setting not in OTLP_TABLE:
            assert setting.variables[0].name in message
    assert "OTEL_AUDIT_CONFIG" in message


def test_an_unknown_name_in_code_stops_start_up_and_names_the_valid_ones() -> None:
    message = refusal({}, batch_size=5)

    assert message.startswith("batch_size: unknown setting (code); ")
    assert all(setting.name in message for setting in TABLE)


def test_names_of_the_test_suite_are_no_settings_and_do_no_harm() -> None:
    environ = {name + ("X" if name.endswith("_") else ""): "/opt/x" for name in RESERVED}

    assert Settings.load({**HOME, **environ}) == Settings.load(HOME)
    assert "OTEL_AUDIT_OTELCOL2" in refusal({"OTEL_AUDIT_OTELCOL2": "/opt/x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("directory: /srv\nbach_count: 5\n", "audit.yaml:2: unknown setting 'bach_count'; did you mean batch_count"),
        ("batch_count: 5\n\nbatch_count: 6\n", "audit.yaml:3: batch_count is given twice, first at "),
        ("- batch_count\n", "audit.yaml:1: expected `name: value` lines, got a list"),
        ("batch_count\n", "audit.yaml:1: expected `name: value` lines, got a single value"),
        ("export: [otlp, [jsonl]]\n", "audit.yaml:1: export: expected a plain value, a list or names with values"),
        ("batch_count: 5\nheaders: {a: 's3cret\n", "audit.yaml:3: expected YAML, got "),
        ("headers: 's3cret\x01'\n", "audit.yaml: expected YAML, got a character that YAML does not allow"),
        ("headers: {a: *s3cret}\n", "audit.yaml:1: expected YAML, got undefined alias '...'"),
        ("headers: !s3!cret x\n", "audit.yaml:1: expected YAML, got undefined tag handle '...'"),
        ("batch_count: 5\n---\nheaders: s3cret\n", "audit.yaml:2: expected YAML, got another document"),
        ("batch_count: \t5\n", "expected YAML, got character '\\t' that cannot start any token"),
        ("? [s3cret]\n: 5\n", "audit.yaml:1: unknown setting 'a list'"),
        (f"batch_count: {'[' * 20_000}s3cret", "audit.yaml: expected `name: value` lines, got brackets in brackets"),
        (f"batch_count: {'1' * 5000}\n", "batch_count: expected a whole number"),
        (f"segment_bytes: {'1' * 5000} KiB\n", "segment_bytes: expected bytes"),
        ("batch_count: !!python/object/apply:os.abort []\n", "batch_count: expected a whole number"),
    ],
)
def test_a_wrong_file_is_told_its_line_and_shows_no_secret(tmp_path: Path, text: str, message: str) -> None:
    refused = refusal(config_file(tmp_path, text))

    assert message in refused
    assert "s3cret" not in refused


def test_a_file_that_cannot_be_read_stops_start_up(tmp_path: Path) -> None:
    not_text = config_file(tmp_path, "")
    (tmp_path / "audit.yaml").write_bytes(b"\xff\xfe\x00")

    assert "No such file" in refusal({"OTEL_AUDIT_CONFIG": str(tmp_path / "none.yaml")})
    assert "it is not UTF-8" in refusal(not_text)


def test_the_file_may_be_empty_and_takes_plain_scalars_lists_and_mappings(tmp_path: Path) -> None:
    for nothing in ("# nothing\n", "", "---\n", "--- ~\n"):
        assert Settings.load({**HOME, **config_file(tmp_path, nothing)}) == Settings.load(HOME)
    text = "export: [otlp, console]\nfile_mode: 0660\nlog_successful_reads: off\nheaders: {X-Key: 'a%20b'}\n"

    settings = Settings.load({**HOME, **config_file(tmp_path, text)})

    assert settings.export == (ExporterName.OTLP, ExporterName.CONSOLE)
    assert settings.file_mode == 0o660
    assert settings.log_successful_reads is False
    assert settings.otlp is not None
    assert settings.otlp.headers == (("x-key", "a%20b"),)


def test_a_number_that_python_does_not_write_is_refused_like_any_other() -> None:
    with pytest.raises(ConfigError, match="batch_count: expected a whole number from 1 to 10000"):
        Settings.load({}, {"batch_count": 10**5000})


@pytest.mark.parametrize(
    "endpoint", ["ftp://h:1/v1/logs?key=s3cret", "ftp://ann:s3cret@h/?a=s3cret#s3cret", "http://h:1/x?key=s3cret"]
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
        ({"OTEL_LOGS_EXPORTER": "console,otlp"}, {}, "console,otlp", "environment OTEL_LOGS_EXPORTER"),
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


def test_a_word_of_otel_logs_exporter_that_we_do_not_know_stops_start_up_and_names_our_variable() -> None:
    message = refusal({"OTEL_LOGS_EXPORTER": "otlp_proto_http"})

    assert message.startswith("OTEL_LOGS_EXPORTER: expected a comma list of otlp, console, or none alone, got ")
    assert message.endswith("set OTEL_AUDIT_EXPORT, which wins over it")


@pytest.mark.parametrize(
    ("variable", "text", "name", "value", "bad"),
    [
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "64", "batch_count", 64, "20000"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "250", "batch_delay_s", 0.25, "0.5"),
        ("OTEL_BLRP_EXPORT_TIMEOUT", "2500", "timeout_s", 2.5, "600001"),
    ],
)
def test_a_variable_of_the_batch_processor_is_the_default_of_ours(
    tmp_path: Path, variable: str, text: str, name: str, value: object, bad: str
) -> None:
    setting = next(setting for setting in TABLE if setting.name == name)
    beside = {**HOME, **companions(setting)}

    settings = Settings.load({**beside, variable: text})
    from_file = Settings.load({**beside, variable: text, **config_file(tmp_path, f"{name}: 7\n")})

    assert effective(settings, setting) == value
    assert settings.sources[name] == Source(Origin.ENVIRONMENT, variable)
    assert effective(from_file, setting) == 7
    assert f"set {setting.variables[0].name}, which wins over it" in refusal({**beside, variable: bad})


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "unknown_service"),
        ({"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"OTEL_SERVICE_NAME": "", "OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name = my%20shop ,c"}, "my shop"),
        ({"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "service.name=other"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,service.name=b"}, "b"),
    ],
)
def test_the_service_name_is_the_one_the_sdk_finds(
    environ: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.sdk.resources import OTELResourceDetector

    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.setenv(variable, environ.get(variable, ""))

    assert Settings.load({**HOME, **environ}).service_name == name
    assert OTELResourceDetector().detect().attributes.get("service.name", "unknown_service") == name


def test_the_default_directory_is_of_the_user_and_the_service() -> None:
    assert default_directory({"HOME": "/home/a"}, "shop", 1000) == Path("/home/a/.local/state/otel-audit/shop")
    assert default_directory({"HOME": "/root"}, "shop", 0) == Path("/var/lib/otel-audit/shop")
    assert default_directory({"XDG_STATE_HOME": "/state"}, "shop", 0) == Path("/state/otel-audit/shop")
    relative = {"HOME": "/home/a", "XDG_STATE_HOME": "state"}
    assert default_directory(relative, "shop", 1000) == Path("/home/a/.local/state/otel-audit/shop")


def test_a_user_without_a_home_directory_is_told_to_set_one() -> None:
    with pytest.raises(ConfigError, match=r"OTEL_AUDIT_DIR: expected a directory .* set OTEL_AUDIT_DIR"):
        default_directory({}, "shop", 2**31 - 7)


def test_services_with_odd_names_get_directories_of_their_own_inside_the_parent() -> None:
    odd = ["..", ".", "a/b", "a_b", "a b", "../../etc", "x" * 300, "x" * 301, "ä", "\udcff"]

    parts = [name_for_a_path(name) for name in odd]

    assert len(set(parts)) == len(odd)
    for part in parts:
        assert Path("/p", part).parent == Path("/p")
        assert part not in (".", "..")
        assert len(part) <= 120


def test_a_relative_directory_is_made_absolute_before_the_process_can_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert Settings.load({**HOME, "OTEL_AUDIT_DIR": "audit"}).directory == tmp_path / "audit"


def test_the_jsonl_file_lies_in_the_directory_that_is_in_force() -> None:
    assert Settings.load(HOME, {"directory": "/srv/audit"}).jsonl_path == Path("/srv/audit/export.jsonl")


@pytest.mark.parametrize("mode", ["0400", "0700", "0666", "1600", "rw", "-0600"])
def test_a_file_mode_that_locks_out_the_owner_or_lets_others_write_is_refused(mode: str) -> None:
    assert refusal({"OTEL_AUDIT_FILE_MODE": mode}).startswith("OTEL_AUDIT_FILE_MODE: expected an octal file mode")


def test_variables_without_effect_are_listed_only_when_they_would_have_one() -> None:
    environ = {
        **HOME,
        "OTEL_SDK_DISABLED": "TRUE",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "5",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "",
    }

    assert Settings.load(environ).ignored == ("OTEL_SDK_DISABLED", "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT")
    assert Settings.load({**HOME, "OTEL_SDK_DISABLED": "false"}).ignored == ()


def test_settings_are_values_that_nobody_can_change() -> None:
    settings = Settings.load(HOME)

    with pytest.raises(AttributeError):
        settings.batch_count = 1  # type: ignore[misc]  # what the test is about
    with pytest.raises(TypeError):
        settings.sources["batch_count"] = Source(Origin.CODE)  # type: ignore[index]  # what the test is about


def test_a_password_in_an_endpoint_is_not_in_the_message_about_it() -> None:
    message = refusal({"OTEL_AUDIT_EXPORT": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://ann:p/w@c.example:4317"})

    assert "got 'ftp://****@c.example:4317' (environment)" in message


def test_what_has_another_copy_is_kept_a_month_and_the_only_one_for_more_than_a_year() -> None:
    delivered = Settings.load({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    alone = Settings.load({"OTEL_AUDIT_EXPORT": "none"})
    for_ever = Settings.load({"OTEL_AUDIT_EXPORT": "none", "OTEL_AUDIT_RETENTION_DAYS": "0"})

    assert (delivered.retention_days, alone.retention_days, for_ever.retention_days) == (30, 400, 0)


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_nobody_can_trust_every_address_as_a_proxy(network: str) -> None:
    message = refusal({"OTEL_AUDIT_TRUSTED_PROXIES": f"10.0.0.1, {network}"})

    assert "believe every client" in message


def test_a_network_with_host_bits_is_refused_as_a_typing_error() -> None:
    assert "host bits" in refusal({"OTEL_AUDIT_TRUSTED_PROXIES": "10.0.0.1/8"})
