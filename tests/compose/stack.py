"""The files of the stack as values: the compose project, the configurations that are mounted, who listens where."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.compose.toolchain import compose_loader

__all__ = [
    "COMPOSE_FILE",
    "CONFIGS",
    "DEBUG_FILE",
    "GRAFANA",
    "ROOT",
    "bind_mounts",
    "collector_builder",
    "compose_config",
    "dashboards",
    "data_sources",
    "load_yaml",
    "loki",
    "panels",
    "port_of",
    "ports_listened_on",
    "project",
    "prometheus",
    "queries",
    "services",
    "tempo",
    "volume_mounts",
]

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DEBUG_FILE = ROOT / "docker-compose.debug.yml"
CONFIGS = ROOT / "collector-config"
GRAFANA = CONFIGS / "grafana"


def load_yaml(path: Path) -> Any:
    """The only document of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def compose_config(environ: dict[str, str], *overrides: Path) -> subprocess.CompletedProcess[str]:
    """What Docker Compose makes of the files with these variables: JSON on stdout, or its complaint on stderr."""
    return subprocess.run(
        [compose_loader(), COMPOSE_FILE, *overrides],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@cache
def project(*overrides: Path) -> dict[str, Any]:
    """The compose project with nothing set but what has to be set."""
    loaded = compose_config({"GRAFANA_ADMIN_PASSWORD_FILE": "./chosen-by-the-user"}, *overrides)
    assert loaded.returncode == 0, loaded.stderr
    read: dict[str, Any] = json.loads(loaded.stdout)
    return read


def services() -> dict[str, dict[str, Any]]:
    """The services of the project by name."""
    found: dict[str, dict[str, Any]] = project()["services"]
    return found


def bind_mounts(service: str) -> dict[str, Path]:
    """What a service sees of the checkout: path in the container to path here."""
    return {mount["target"]: Path(mount["source"]) for mount in _mounts(service) if mount["type"] == "bind"}


def volume_mounts(service: str) -> dict[str, str]:
    """What a service keeps: path in the container to name of the volume."""
    return {mount["target"]: mount["source"] for mount in _mounts(service) if mount["type"] == "volume"}


def _mounts(service: str) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = services()[service].get("volumes", [])
    return mounts


def ports_listened_on() -> dict[str, set[int]]:
    """Service to the ports that its own configuration opens, or that its image is known for."""
    collector = services()["collector"]["environment"]
    protocols = tempo()["distributor"]["receivers"]["otlp"]["protocols"].values()
    return {
        "collector": {
            *(port_of(collector[f"AUDIT_{kind}_ENDPOINT"]) for kind in ("GRPC", "HTTP", "HEALTH")),
            int(collector["AUDIT_METRICS_PORT"]),
            port_of(collector["AUDIT_COUNTS_ENDPOINT"]),
        },
        "loki": {loki()["server"]["http_listen_port"]},
        "tempo": {tempo()["server"]["http_listen_port"], *(port_of(protocol["endpoint"]) for protocol in protocols)},
        "prometheus": {9090},
        "alertmanager": {9093},
        "grafana": {3000},
    }


def port_of(endpoint: str) -> int:
    """The port of `host:port` or of a URL."""
    port = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").port
    assert port, f"no port in {endpoint}"
    return port


@cache
def loki() -> dict[str, Any]:
    """loki.yaml"""
    read: dict[str, Any] = load_yaml(CONFIGS / "loki.yaml")
    return read


@cache
def tempo() -> dict[str, Any]:
    """tempo.yaml"""
    read: dict[str, Any] = load_yaml(CONFIGS / "tempo.yaml")
    return read


@cache
def prometheus() -> dict[str, Any]:
    """prometheus.yaml"""
    read: dict[str, Any] = load_yaml(CONFIGS / "prometheus.yaml")
    return read


@cache
def collector_builder() -> dict[str, Any]:
    """builder.yaml: the collector that the tests run the mounted agent.yaml on."""
    read: dict[str, Any] = load_yaml(CONFIGS / "builder.yaml")
    return read


@cache
def data_sources() -> dict[str, dict[str, Any]]:
    """The provisioned data sources by uid."""
    provisioned = load_yaml(GRAFANA / "provisioning" / "datasources" / "datasources.yaml")
    return {source["uid"]: source for source in provisioned["datasources"]}


@cache
def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards by the name of their file: `audit`, `pipeline`, `trail`."""
    files = sorted((GRAFANA / "dashboards").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def panels(name: str) -> list[dict[str, Any]]:
    """The panels of a dashboard, rows and what is folded into them included."""
    top: list[dict[str, Any]] = dashboards()[name]["panels"]
    return [panel for outer in top for panel in (outer, *outer.get("panels", []))]


def queries(kind: str) -> list[dict[str, Any]]:
    """The queries of all panels that go to one kind of data source, `loki` or `prometheus`."""
    targets = [target for name in dashboards() for panel in panels(name) for target in panel.get("targets", [])]
    return [target for target in targets if target["datasource"]["type"] == kind]
