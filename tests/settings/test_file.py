"""Settings in a YAML file: what it may hold, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_audit.settings import ExporterName, Settings
from tests.setting_examples import HOME, config_file, refusal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("directory: /srv\nbach_count: 5\n", "audit.yaml:2:1: $: unknown key 'bach_count'; did you mean batch_count"),
        (
            "batch_count: 5\n\nbatch_count: 6\n",
            "audit.yaml:3:1: $.batch_count: expected each key once, got it a second time, first in line 1",
        ),
        ("- batch_count\n", "audit.yaml:1:1: $: expected `name: value` lines, got a list"),
        ("batch_count\n", "audit.yaml:1:1: $: expected `name: value` lines, got a single value"),
        (
            "export: [otlp, [jsonl]]\n",
            "audit.yaml:1:9: $.export: expected a plain value, a list or names with values, got nest",
        ),
        ("batch_count: 5\nheaders: {a: 's3cret\n", "audit.yaml:3:1: expected YAML, got "),
        (
            "headers: 's3cret\x01'\n",
            "audit.yaml:1:17: expected YAML, got the character U+0001, which it does not allow",
        ),
        ("headers: {a: *s3cret}\n", "audit.yaml:1:14: expected YAML, got undefined alias '...'"),
        ("headers: !s3!cret x\n", "audit.yaml:1:10: expected YAML, got undefined tag handle '...'"),
        ("batch_count: 5\n---\nheaders: s3cret\n", "audit.yaml:2:1: expected YAML, got another document"),
        ("batch_count: \t5\n", "expected YAML, got character '\\t' that cannot start any token"),
        ("? [s3cret]\n: 5\n", "audit.yaml:1:3: $: unknown key 'a list'"),
        (f"batch_count: {'[' * 20_000}s3cret", "audit.yaml: expected YAML, got brackets in brackets"),
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
    assert "audit.yaml:1:1: expected UTF-8, got byte 0xff" in refusal(not_text)


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
