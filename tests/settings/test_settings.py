"""Every setting: default, order of the places it may come from, what a wrong value is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_audit.errors import ConfigError
from otel_audit.settings import Origin, Provenance, Setting, Settings
from otel_audit.settings.otlp import OTLP_TABLE
from otel_audit.settings.setting import RESERVED
from otel_audit.settings.table import TABLE
from tests.setting_examples import EACH_SETTING, EXAMPLES, HOME, companions, config_file, effective, refusal


def test_every_row_of_the_table_has_an_example_and_every_field_of_settings_a_row() -> None:
    names = [setting.name for setting in TABLE]
    assert list(EXAMPLES) == names
    core = set(Settings.__dataclass_fields__) - {"otlp", "ignored", "sources"}
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
        assert settings.sources[setting.name] == Provenance(Origin.ENVIRONMENT, variable.name)


@EACH_SETTING
def test_a_value_in_code_wins_over_the_environment(setting: Setting[object]) -> None:
    example = EXAMPLES[setting.name]
    environ = {**HOME, **companions(setting), setting.variables[0].name: example.bad}

    for given in (example.code, example.text):
        settings = Settings.load(environ, {setting.name: given})

        assert effective(settings, setting) == example.value
        assert settings.sources[setting.name] == Provenance(Origin.CODE)


@EACH_SETTING
def test_a_value_in_the_file_is_used_when_no_variable_is_set(setting: Setting[object], tmp_path: Path) -> None:
    example = EXAMPLES[setting.name]
    in_file = config_file(tmp_path, f"# ours\n{setting.name}: {json.dumps(example.text)}\n")
    beside = {} if setting.name == "export" else companions(setting)

    from_file = Settings.load({**HOME, **beside, **in_file})
    from_environment = Settings.load({**HOME, **beside, **in_file, setting.variables[0].name: example.text})

    assert effective(from_file, setting) == example.value
    assert str(from_file.sources[setting.name]) == f"{tmp_path}/audit.yaml:2:1"
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
        (refusal({**beside, **in_file}), setting.name, f"{tmp_path}/audit.yaml:1:1"),
    ):
        assert message.startswith(f"{label}: expected {setting.kind.expected}, got {shown} ({place}); ")
        assert not message.endswith("; ")


def test_the_message_about_a_value_reads_as_a_sentence() -> None:
    assert refusal({"OTEL_AUDIT_BATCH_COUNT": "x"}) == (
        "OTEL_AUDIT_BATCH_COUNT: expected a whole number from 1 to 10000, got 'x' (environment); "
        "correct it, or leave it out for the default: 2048"
    )


@pytest.mark.parametrize("wrong", [True, 1.5, pytest.param(object(), id="object"), b"5"], ids=repr)
def test_a_python_value_of_another_type_is_refused(wrong: object) -> None:
    for name in ("batch_count", "segment_bytes", "durability", "directory", "export", "headers", "certificate"):
        assert refusal({}, **{name: wrong}).startswith(f"{name}: expected ")


def test_none_in_code_an_empty_variable_and_an_empty_key_count_as_not_given(tmp_path: Path) -> None:
    environ = {**HOME, "OTEL_AUDIT_BATCH_COUNT": "", **config_file(tmp_path, "batch_count:\nbatch_bytes: ~\n")}

    settings = Settings.load(environ, {"batch_count": None})

    assert settings.batch_count == 2048
    assert settings.sources["batch_count"] == Provenance(Origin.DEFAULT)


def test_an_unknown_variable_stops_start_up_and_names_the_closest_and_all_valid_ones() -> None:
    message = refusal({"OTEL_AUDIT_BACH_COUNT": "5"})

    assert message.startswith(
        "OTEL_AUDIT_BACH_COUNT: unknown setting (environment); did you mean OTEL_AUDIT_BATCH_COUNT"
    )
    for setting in TABLE:
        if setting.variables[0].name.startswith("OTEL_AUDIT_"):
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


def test_a_number_that_python_does_not_write_is_refused_like_any_other() -> None:
    with pytest.raises(ConfigError, match="batch_count: expected a whole number from 1 to 10000"):
        Settings.load({}, {"batch_count": 10**5000})


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
    assert settings.sources[name] == Provenance(Origin.ENVIRONMENT, variable)
    assert effective(from_file, setting) == 7
    assert f"set {setting.variables[0].name}, which wins over it" in refusal({**beside, variable: bad})


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
        settings.sources["batch_count"] = Provenance(Origin.CODE)  # type: ignore[index]  # what the test is about


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_nobody_can_trust_every_address_as_a_proxy(network: str) -> None:
    message = refusal({"OTEL_AUDIT_TRUSTED_PROXIES": f"10.0.0.1, {network}"})

    assert "believe every client" in message


def test_a_network_with_host_bits_is_refused_as_a_typing_error() -> None:
    assert "host bits" in refusal({"OTEL_AUDIT_TRUSTED_PROXIES": "10.0.0.1/8"})
