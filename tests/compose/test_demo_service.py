"""The demo service: its image, and that what compose gives it is understood."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click import Context

from otel_audit.cli import main
from otel_audit.settings import ExporterName, Settings
from tests.compose.stack import ROOT, ports_listened_on, services, volume_mounts

DOCKERFILE = ROOT / "examples" / "demo-service" / "Dockerfile"


def _instructions(name: str) -> list[str]:
    joined = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{name} (.+)$", joined, re.MULTILINE)


def _environment() -> dict[str, str]:
    environment: dict[str, str] = services()["demo-service"]["environment"]
    return environment


@pytest.mark.processes
def test_the_image_is_built_from_the_file_that_compose_names() -> None:
    build = services()["demo-service"]["build"]

    assert Path(build["context"]) == ROOT
    assert ROOT / build["dockerfile"] == DOCKERFILE


def test_the_image_stands_on_a_pinned_python_of_the_oldest_version_supported() -> None:
    [base] = _instructions("FROM")

    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)


def test_everything_that_is_copied_into_the_image_exists_and_reaches_the_builder() -> None:
    sources = [source for copy in _instructions("COPY") for source in copy.split()[:-1]]
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")

    allowed = [line.removeprefix("!") for line in ignore if line.startswith("!")]

    assert "*" in ignore
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {source.removeprefix("./") for source in sources} == set(allowed)
    assert not any(fnmatch(".git", pattern) for pattern in allowed)


def test_the_image_holds_all_that_the_build_of_the_package_names() -> None:
    copied = {source for copy in _instructions("COPY") for source in copy.split()[:-1]}

    assert copied == {"pyproject.toml", "README.md", "LICENSE", "otel_audit"}


@pytest.mark.processes
def test_the_service_runs_as_the_user_that_the_image_made() -> None:
    [user] = _instructions("USER")
    [run] = _instructions("RUN")

    assert services()["demo-service"]["user"] == user == "10002:10002"
    assert "--uid 10002" in run


@pytest.mark.processes
def test_the_journal_lies_on_a_volume() -> None:
    assert _environment()["OTEL_AUDIT_DIR"] in volume_mounts("demo-service")


@pytest.mark.processes
def test_the_health_check_looks_where_the_journal_is() -> None:
    [check] = services()["demo-service"]["healthcheck"]["test"][1:]

    assert check.startswith(f"find {_environment()['OTEL_AUDIT_DIR']} -name '*.jsonl' ")


@pytest.mark.processes
def test_everything_goes_to_one_endpoint_the_collectors() -> None:
    [name] = [name for name in _environment() if name.startswith("OTEL_EXPORTER_OTLP") and name.endswith("ENDPOINT")]

    endpoint = urlsplit(_environment()[name])

    assert name == "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert endpoint.hostname == "collector"
    assert endpoint.port in ports_listened_on()["collector"]


@pytest.mark.processes
def test_the_settings_of_the_service_are_accepted() -> None:
    settings = Settings.load(_environment())

    assert settings.export == (ExporterName.OTLP,)
    assert settings.service_name == "demo-service"
    assert str(settings.directory) == _environment()["OTEL_AUDIT_DIR"]


def test_the_image_starts_the_command_that_the_package_installs() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    [entry], [arguments] = _instructions("ENTRYPOINT"), _instructions("CMD")

    [program] = json.loads(entry)
    name, *options = json.loads(arguments)
    command = main.get_command(Context(main), name)

    assert program in scripts
    assert command is not None
    given = command.make_context(name, options).params
    assert (given["seconds"], given["rate"]) == (0, 5)  # 0 seconds: until it is stopped
