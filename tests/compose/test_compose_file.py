"""docker-compose.yml: what it starts, as whom, and whether everything it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pytest

from tests.compose.stack import (
    DEBUG_FILE,
    ROOT,
    bind_mounts,
    collector_builder,
    compose_config,
    load_yaml,
    port_of,
    ports_listened_on,
    project,
    services,
    volume_mounts,
)
from tests.servers import AGENT_CONFIG

pytestmark = pytest.mark.processes

IMAGES_WITHOUT_A_SHELL = ("collector", "loki", "tempo")
CONFIGURED_BY_FILE = ("collector", "loki", "tempo", "prometheus", "alertmanager")
VARIABLE_OF_THE_AGENT = re.compile(r"\$\{env:(\w+)")


def test_docker_compose_accepts_the_file() -> None:
    assert set(services()) >= {"collector", "loki", "tempo", "prometheus", "grafana", "demo-service"}


def test_the_stack_does_not_start_without_a_password_of_the_users_own() -> None:
    refused = compose_config({})

    assert refused.returncode != 0
    assert "GRAFANA_ADMIN_PASSWORD_FILE" in refused.stderr
    assert "docs/operations.md" in refused.stderr


def test_nobody_sees_the_dashboards_without_logging_in() -> None:
    environment = services()["grafana"]["environment"]

    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"


def test_every_image_that_is_pulled_is_pinned_to_a_release() -> None:
    tags = {name: service["image"].partition(":")[2] for name, service in services().items() if "build" not in service}

    assert {name: tag for name, tag in tags.items() if not re.fullmatch(r"v?\d+\.\d+\.\d+", tag)} == {}


def test_the_collector_is_the_release_that_the_tests_run() -> None:
    builder = collector_builder()

    image = services()["collector"]["image"]

    assert image == f"otel/opentelemetry-collector-contrib:{builder['dist']['version']}"


def _published(*overrides: Path) -> dict[str, list[dict[str, Any]]]:
    """The published ports of each service that has any."""
    found = project(*overrides)["services"]
    return {name: service["ports"] for name, service in found.items() if service.get("ports")}


def test_no_port_is_published_at_which_nobody_asks_who_is_there() -> None:
    # Loki's API reads, writes and deletes, Tempo's and Prometheus' read: none of them knows a password.
    assert set(_published()) == {"collector", "grafana"}


def test_a_service_that_writes_events_cannot_reach_the_stores() -> None:
    networks = {name: set(service["networks"]) for name, service in services().items() if "networks" in service}

    assert networks["demo-service"] & networks["collector"]
    for store in ("loki", "tempo", "prometheus", "alertmanager", "grafana"):
        assert not networks["demo-service"] & networks[store], store
    for store in ("loki", "tempo", "prometheus"):
        assert networks["collector"] & networks[store], store
    assert networks["grafana"] & networks["loki"] & networks["tempo"] & networks["prometheus"]


def test_the_ports_of_the_stores_are_published_for_debugging() -> None:
    opened = {name for name in _published(DEBUG_FILE) if name not in _published()}

    assert opened == {"loki", "tempo", "prometheus"}


@pytest.mark.parametrize("overrides", [(), (DEBUG_FILE,)], ids=["as it is", "for debugging"])
def test_ports_are_published_on_loopback_only(overrides: tuple[Path, ...]) -> None:
    ports = [port for published in _published(*overrides).values() for port in published]

    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert len({port["published"] for port in ports}) == len(ports)


def test_every_published_port_can_be_moved_when_it_is_taken() -> None:
    moved = {
        "OTLP_GRPC_PORT": "41001",
        "OTLP_HTTP_PORT": "41002",
        "LOKI_PORT": "41003",
        "TEMPO_PORT": "41004",
        "TEMPO_OTLP_HTTP_PORT": "41005",
        "PROMETHEUS_PORT": "41006",
        "GRAFANA_PORT": "41007",
    }

    loaded = compose_config({"GRAFANA_ADMIN_PASSWORD_FILE": "./x", **moved}, DEBUG_FILE)

    assert set(re.findall(r'"published":\s*"(\d+)"', loaded.stdout)) == set(moved.values())


def test_something_listens_at_every_published_port() -> None:
    listened = ports_listened_on()

    published = {(name, port["target"]) for name, ports in _published(DEBUG_FILE).items() for port in ports}

    assert {(name, port) for name, port in published if port not in listened[name]} == set()


def test_every_mounted_file_exists_and_cannot_be_written() -> None:
    mounts = [
        mount for service in services().values() for mount in service.get("volumes", []) if mount["type"] == "bind"
    ]

    assert mounts
    assert [mount["source"] for mount in mounts if not _in_the_checkout(mount["source"])] == []
    assert all(mount["read_only"] for mount in mounts)


def _in_the_checkout(source: str) -> bool:
    path = ROOT.joinpath(source)
    return path.exists() and path.is_relative_to(ROOT)


@pytest.mark.parametrize("name", CONFIGURED_BY_FILE)
def test_a_service_is_started_with_the_configuration_that_is_mounted(name: str) -> None:
    [path] = [
        argument.partition("=")[2] for argument in services()[name]["command"] if re.match("-{1,2}config", argument)
    ]

    assert path in bind_mounts(name)


def test_the_collector_is_given_exactly_the_variables_that_its_configuration_reads() -> None:
    [agent] = bind_mounts("collector").values()

    read = set(VARIABLE_OF_THE_AGENT.findall(agent.read_text(encoding="utf-8")))

    assert set(services()["collector"]["environment"]) == read


def test_the_queue_and_the_archive_of_the_collector_have_a_volume_each() -> None:
    environment, volumes = services()["collector"]["environment"], volume_mounts("collector")

    assert volumes == {environment["AUDIT_QUEUE_DIR"]: "queue", environment["AUDIT_ARCHIVE_DIR"]: "archive"}


def test_the_collector_delivers_to_the_otlp_endpoint_of_loki() -> None:
    endpoint = urlsplit(services()["collector"]["environment"]["LOKI_OTLP_ENDPOINT"])

    assert endpoint.hostname == "loki"
    assert endpoint.port in ports_listened_on()["loki"]
    assert endpoint.path == "/otlp"


@pytest.mark.parametrize("name", IMAGES_WITHOUT_A_SHELL)
def test_an_image_without_a_shell_is_asked_for_its_health_by_a_side_car(name: str) -> None:
    probe = services()[f"{name}-probe"]

    asked = _asked_by(name)[0]

    assert "healthcheck" not in services()[name]
    assert probe["image"].startswith("busybox:")
    assert asked.hostname == name
    assert asked.port in ports_listened_on()[name]


def _asked_by(name: str) -> list[SplitResult]:
    """The addresses that the side-car of a service asks."""
    return [urlsplit(part) for part in services()[f"{name}-probe"]["healthcheck"]["test"] if "://" in part]


def test_the_health_of_the_collector_is_that_of_its_disks_too() -> None:
    environment = services()["collector"]["environment"]
    health, metrics = _asked_by("collector")
    [script] = bind_mounts("collector-probe")

    _, shell, run, *_, queue, archive = services()["collector-probe"]["healthcheck"]["test"]

    assert health.port == port_of(environment["AUDIT_HEALTH_ENDPOINT"])
    assert (metrics.hostname, metrics.port) == ("collector", int(environment["AUDIT_METRICS_PORT"]))
    assert (shell, run) == ("sh", script)
    assert volume_mounts("collector-probe") == {queue: "queue", archive: "archive"}
    mounts = services()["collector-probe"]["volumes"]
    assert all(mount["read_only"] for mount in mounts)


@pytest.mark.parametrize("name", ["prometheus", "alertmanager", "grafana"])
def test_a_health_check_inside_a_container_asks_a_port_that_is_open_there(name: str) -> None:
    [url] = re.findall(r"http://[^\s]+", " ".join(services()[name]["healthcheck"]["test"]))

    assert urlsplit(url).hostname == "127.0.0.1"
    assert urlsplit(url).port in ports_listened_on()[name]


def test_every_service_that_runs_on_has_its_health_checked() -> None:
    unchecked = {name for name, service in services().items() if "healthcheck" not in service}

    assert unchecked == {*IMAGES_WITHOUT_A_SHELL, "volumes"}


def test_every_volume_belongs_to_the_user_that_writes_to_it() -> None:
    owners = _owners_given_by(services()["volumes"])

    for name, service in services().items():
        if name not in ("volumes", "collector-probe"):  # which only reads
            for volume in volume_mounts(name).values():
                assert owners[volume] == service["user"], f"{name} writes to {volume} as {service['user']}"


def test_nobody_writes_to_a_volume_before_it_is_handed_over() -> None:
    for name in services():
        if name not in ("volumes", "collector-probe") and volume_mounts(name):
            assert services()[name]["depends_on"]["volumes"]["condition"] == "service_completed_successfully"


def _owners_given_by(service: dict[str, Any]) -> dict[str, str]:
    """Volume to `uid:gid`, as the script of the service chowns it."""
    volumes = volume_mounts("volumes")
    owners = {}
    for owner, targets in re.findall(r"chown (\S+) (.+)", service["command"][-1]):
        owners.update({volumes[target]: owner for target in targets.split()})
    return owners


def test_only_the_step_that_hands_over_volumes_is_root_and_it_has_no_network() -> None:
    roots = {name for name, service in services().items() if service["user"].startswith("0:")}

    assert roots == {"volumes"}
    assert services()["volumes"]["network_mode"] == "none"
    assert services()["volumes"]["cap_add"] == ["CHOWN"]


def test_no_service_keeps_a_capability_or_can_gain_one() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_no_service_writes_outside_its_volume_and_a_place_for_temporary_files() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service.get("tmpfs", ["/tmp"]) == ["/tmp"], name


def test_no_service_can_take_all_memory_or_all_processes_of_the_machine() -> None:
    for name, service in services().items():
        assert 0 < int(service["mem_limit"]) <= 2 << 30, name
        assert 0 < service["pids_limit"] <= 256, name


def test_the_collector_refuses_before_its_memory_is_at_its_end() -> None:
    limiter = load_yaml(AGENT_CONFIG)["processors"]["memory_limiter"]

    assert int(services()["collector"]["mem_limit"]) >= 2 * (limiter["limit_mib"] << 20)


def test_the_password_is_a_file_and_no_variable() -> None:
    [secret] = services()["grafana"]["secrets"]
    environment = services()["grafana"]["environment"]

    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == f"/run/secrets/{secret['source']}"
    assert "file" in project()["secrets"][secret["source"]]
    assert "GF_SECURITY_ADMIN_PASSWORD" not in environment


def test_events_are_taken_while_the_stores_are_away() -> None:
    assert set(services()["collector"]["depends_on"]) == {"volumes"}
    assert set(services()["demo-service"]["depends_on"]) == {"volumes"}
