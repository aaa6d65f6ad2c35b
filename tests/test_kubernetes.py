"""The example for Kubernetes: accepted by its schema, locked down, and its commands do what they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

from otel_audit.journal.census import census
from otel_audit.settings import Settings
from tests.delivery.audited_server import AuditedServer
from tests.end_to_end.other_users import as_user, require_other_users
from tests.servers import AGENT_CONFIG, free_port, poll
from tests.servers.otlp_server import Answer, OtlpServer
from tests.servers.ports import LOOPBACK

pytestmark = pytest.mark.processes

MANIFESTS = AGENT_CONFIG.parent / "kubernetes"
RELEASE = "1.37"
PROGRAMS = Path(sys.executable).parent


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8")))


def pod_of(name: str, kind: str) -> dict[str, Any]:
    [found] = [each for each in documents(name) if each["kind"] == kind]
    pod: dict[str, Any] = found["spec"]["template"]["spec"]
    return pod


def pods() -> list[dict[str, Any]]:
    return [pod_of("service", "StatefulSet"), pod_of("drain", "Job")]


def containers(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def side_car() -> dict[str, Any]:
    [found] = pod_of("service", "StatefulSet")["initContainers"]
    assert isinstance(found, dict)
    return found


def service() -> dict[str, Any]:
    [found] = pod_of("service", "StatefulSet")["containers"]
    assert isinstance(found, dict)
    return found


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


@contextmanager
def running(
    container: Mapping[str, Any], directory: Path, server: OtlpServer, health: int
) -> Iterator[subprocess.Popen[bytes]]:
    """What a container starts, with its variables, over `directory` and towards `server`; SIGKILL at the end."""
    with subprocess.Popen(
        as_the_pod(command_of(container, directory, health), directory),
        env=environment_of(container, directory, server),
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def as_the_pod(command: Sequence[str], volume: Path) -> list[str]:
    """The command line as the pod runs it: its user and group, a read-only root, no capability, and this volume."""
    rights = pod_of("service", "StatefulSet")["securityContext"]
    user, group = rights["runAsUser"], rights["fsGroup"]
    return as_user(user, group, command, umask=0o022, shown=[volume], read_only_root=True)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume as `fsGroup` makes one: it belongs to root and to the group, whose files stay the group's."""
    require_other_users()
    made = tmp_path / "volume"
    made.mkdir()
    os.chown(made, 0, pod_of("service", "StatefulSet")["securityContext"]["fsGroup"])
    made.chmod(0o2775)
    return made


def command_of(container: Mapping[str, Any], directory: Path, health: int) -> list[str]:
    program, *arguments = container["command"]
    other = {"/var/lib/otel-audit": str(directory), "0.0.0.0:13134": f"{LOOPBACK}:{health}"}
    return [str(PROGRAMS / program), *(other.get(each, each) for each in arguments)]


def environment_of(container: Mapping[str, Any], directory: Path, server: OtlpServer) -> dict[str, str]:
    own = variables(container)
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in own:
        own["OTEL_EXPORTER_OTLP_ENDPOINT"] = server.base_url
    if "OTEL_AUDIT_DIR" in own:
        own["OTEL_AUDIT_DIR"] = str(directory)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**inherited, "NO_PROXY": "*", "HOME": "/nonexistent", "TMPDIR": "/var/tmp", **own}


def probed(container: Mapping[str, Any], probe: str, port: int) -> int:
    path = container[probe]["httpGet"]["path"]
    try:
        return requests.get(f"http://{LOOPBACK}:{port}{path}", timeout=10).status_code
    except requests.ConnectionError:
        return 0


def totals(directory: Path) -> Sequence[int]:
    counted = census(directory).totals
    return counted.emitted, counted.pending


@pytest.mark.parametrize("name", ["service", "drain"])
def test_kubernetes_accepts_every_object(name: str) -> None:
    for document in documents(name):
        assert kubernetes_validate.validate(document, RELEASE, strict=True) == RELEASE


def test_the_schema_does_refuse_what_it_does_not_know() -> None:
    [job] = documents("drain")
    job["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, RELEASE, strict=True)


def test_nothing_runs_as_root_writes_its_image_or_may_take_all_memory() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in containers(pod):
            own = container["securityContext"]
            assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_the_side_car_lives_as_long_as_the_pod_and_shares_its_volume() -> None:
    assert side_car()["restartPolicy"] == "Always"
    assert side_car()["volumeMounts"] == service()["volumeMounts"]
    assert variables(service())["OTEL_AUDIT_DIR"] == side_car()["command"][-1]
    assert variables(service())["OTEL_AUDIT_EXPORT"] == "ship"
    modes = {variables(each)["OTEL_AUDIT_FILE_MODE"] for pod in pods() for each in containers(pod)}
    assert modes == {"0640"}


def test_each_container_has_the_time_to_close_before_the_pod_is_killed() -> None:
    close_s = [
        Settings.load({"OTEL_SERVICE_NAME": "x", "OTEL_AUDIT_DIR": "/tmp", **variables(each)}).close_timeout_s
        for each in (service(), side_car())
    ]

    assert pod_of("service", "StatefulSet")["terminationGracePeriodSeconds"] > sum(close_s)


def test_a_pod_that_was_killed_has_a_successor_that_delivers_the_rest(volume: Path, server: AuditedServer) -> None:
    """The service and its side-car as processes, on the volume that the next pod mounts."""
    health = free_port()
    server.judge = lambda names: Answer(503)  # the collector is away
    with running(side_car(), volume, server, health):
        poll(lambda: probed(side_car(), "startupProbe", health), until=lambda code: code == 200, what="the side-car")
        with running(service(), volume, server, health):
            poll(lambda: totals(volume)[0], until=lambda emitted: emitted >= 5, what="five events")
        assert probed(side_car(), "readinessProbe", health) == 200  # its pod is not taken out of traffic
        assert probed(side_car(), "livenessProbe", health) == 200
    emitted, pending = totals(volume)
    assert emitted == pending >= 5

    server.judge = lambda names: Answer()
    with running(side_car(), volume, server, health):  # of the successor
        poll(lambda: totals(volume), until=lambda now: now == (emitted, 0), what="all delivered")

    assert {oct(path.stat().st_mode & 0o777) for path in volume.glob("*.jsonl")} == {"0o640"}


def test_what_the_service_logs_last_is_delivered_when_the_pod_ends(volume: Path, server: AuditedServer) -> None:
    health = free_port()
    with running(side_car(), volume, server, health) as shipper:
        with running(service(), volume, server, health) as process:
            poll(lambda: totals(volume)[0], until=lambda emitted: emitted >= 3, what="three events")
            process.terminate()  # first the service, then its side-car
            process.wait(float(pod_of("service", "StatefulSet")["terminationGracePeriodSeconds"]))
        shipper.terminate()
        shipper.wait(float(variables(side_car())["OTEL_AUDIT_CLOSE_TIMEOUT_S"]) + 10)

    emitted, pending = totals(volume)
    assert (emitted >= 3, pending, shipper.returncode) == (True, 0, 0)


def test_a_volume_that_was_left_is_drained(volume: Path, server: AuditedServer) -> None:
    with running(service(), volume, server, free_port()):
        poll(lambda: totals(volume)[0], until=lambda emitted: emitted >= 3, what="three events")
    [container] = pod_of("drain", "Job")["containers"]

    done = subprocess.run(
        as_the_pod(command_of(container, volume, 0), volume),
        env=environment_of(container, volume, server),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert (done.returncode, totals(volume)[1]) == (0, 0), done.stderr


def test_a_container_has_a_read_only_root_no_capability_and_the_group_of_its_volume(volume: Path) -> None:
    script = f"touch {volume}/x /var/tmp/x; findmnt -no OPTIONS /; grep -E '^Cap(Eff|Bnd)' /proc/self/status"
    done = subprocess.run(
        as_the_pod(["sh", "-c", script], volume), capture_output=True, text=True, timeout=60, check=True
    )

    mounted, effective, bounding = done.stdout.splitlines()
    assert mounted.split(",")[0] == "ro"
    assert {effective.split()[1], bounding.split()[1]} == {"0" * 16}
    assert (volume / "x").stat().st_gid == pod_of("service", "StatefulSet")["securityContext"]["fsGroup"]
