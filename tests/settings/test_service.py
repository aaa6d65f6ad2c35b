"""The name of the service, and the directory and files that follow from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_audit.errors import ConfigError
from otel_audit.settings import Origin, Settings
from otel_audit.settings.service import default_directory, name_for_a_path
from tests.setting_examples import HOME


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


def test_code_and_the_file_name_the_service_too(tmp_path: Path) -> None:
    environ = {**HOME, "OTEL_SERVICE_NAME": "of the environment", "OTEL_RESOURCE_ATTRIBUTES": "a=b"}
    (tmp_path / "a.yaml").write_text("service_name: of the file\n")
    in_file = {**HOME, "OTEL_RESOURCE_ATTRIBUTES": "service.name=other", "OTEL_AUDIT_CONFIG": f"{tmp_path}/a.yaml"}

    named = Settings.load(environ, {"service_name": "shop"})

    assert (named.service_name, named.sources["service_name"].origin) == ("shop", Origin.CODE)
    assert named.directory == Path("/home/alice/state/otel-audit/shop")
    assert Settings.load(in_file).service_name == "of the file"
    assert Settings.load({**HOME, "OTEL_RESOURCE_ATTRIBUTES": "a=b"}).sources["service_name"].origin is Origin.DEFAULT


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
