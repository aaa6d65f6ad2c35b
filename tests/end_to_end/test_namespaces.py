"""Containers that share a volume: in each the process is pid 1, and none hears of the others but through the files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from otel_audit.journal.files import StreamFiles
from otel_audit.journal.locks import FileLock
from tests.chain_check import read_streams
from tests.end_to_end.delivered import assert_archived_once
from tests.end_to_end.services import Callers, Service, events_in_archive, service_environment
from tests.end_to_end.test_main_path import ROOT, otel_audit
from tests.servers import AGENT_CONFIG, COLLECTOR, Collector, ServerProcess, poll

pytestmark = pytest.mark.processes

_UNSHARE = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--net", "--uts"]
# A container's own name and machine id, its loopback up, and then the service as pid 1. A machine without the file has
# only the name.
_INSIDE = """
    set -e
    hostname "$1"
    if [ -e /etc/machine-id ]; then mount --bind "$2" /etc/machine-id; fi
    ip link set lo up
    shift 2
    exec "$@"
"""
_SERVICE = """
    import os, sys
    import otel_audit

    audit = otel_audit.configure()
    for line in sys.stdin:
        receipt = audit.log(otel_audit.AuditEvent(event_type="test", outcome="success", event_id=line.strip()))
        print(receipt.event_id, receipt.stream_id, os.getpid(), flush=True)
"""


class Container:
    """A service of one directory in its own pid, network, host name and mount namespaces, on the host `identity`."""

    def __init__(self, place: Path, identity: str, endpoint: str, directory: Path, **more: str) -> None:
        machine_id = place / f"{identity}.machine-id"
        machine_id.write_text(f"{identity}\n")
        inside = ["sh", "-c", textwrap.dedent(_INSIDE), "sh", identity, str(machine_id)]
        self.stream_id = ""
        self._outside = subprocess.Popen(
            [*_UNSHARE, *inside, sys.executable, "-c", textwrap.dedent(_SERVICE)],
            cwd=ROOT,
            env=service_environment(
                endpoint, directory, OTEL_AUDIT_BATCH_DELAY_S="0.2", OTEL_AUDIT_BACKOFF_CAP_S="1", **more
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *error: object) -> None:
        self._outside.kill()  # and with it, by --kill-child, what is inside
        self._outside.communicate()

    @property
    def pid(self) -> int:
        """Of the service, as it is seen from outside."""
        return only_child(self._outside.pid)

    def log(self, *names: str) -> None:
        """The events are acknowledged."""
        assert self._outside.stdin is not None
        assert self._outside.stdout is not None
        for name in names:
            self._outside.stdin.write(f"{name}\n")
            self._outside.stdin.flush()
            acknowledged, self.stream_id, pid = self._outside.stdout.readline().split()
            assert (acknowledged, pid) == (name, "1")

    def kill(self) -> None:
        """SIGKILL, as a node does that has no memory left."""
        os.kill(self.pid, signal.SIGKILL)
        self._outside.wait(120)

    def end(self) -> None:
        """Its standard input is closed, and it returns."""
        self._outside.communicate(timeout=120)
        assert self._outside.returncode == 0


def only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


class StartContainer(Protocol):
    """Starts one more container of the shared directory, which is killed at the end of the test."""

    def __call__(self, identity: str, **more: str) -> Container: ...


@pytest.fixture(scope="module")
def _namespaces() -> None:
    """This machine lets us make namespaces."""
    trial = [*_UNSHARE, "sh", "-c", 'hostname trial && mount --bind "$0" "$0" && ip link set lo up', "/tmp"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, check=False)
        why = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        why = str(error)
    if why:
        pytest.skip(f"namespaces cannot be made (needs root, util-linux and iproute2): {why}")


@pytest.fixture
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """On the disk that the test names by its fixture, if it does."""
    disk = getattr(request, "param", "tmp_path")
    place: Path = request.getfixturevalue(disk)
    return place / "audit"


@pytest.fixture
def agent(tmp_path: Path) -> Collector:
    """The addresses and the archive of a collector that `run_agent` starts inside of a container."""
    return Collector(tmp_path / "collector")


@pytest.fixture
def start(_namespaces: None, tmp_path: Path, directory: Path, agent: Collector) -> Iterator[StartContainer]:
    with ExitStack() as running:

        def container(identity: str, **more: str) -> Container:
            return running.enter_context(Container(tmp_path, identity, agent.http_endpoint, directory, **more))

        yield container


class RunAgent(Protocol):
    """The collector listens on the loopback of this container, and on no other."""

    def __call__(self, container: Container) -> None: ...


@pytest.fixture
def run_agent(agent: Collector) -> Iterator[RunAgent]:
    with ExitStack() as running:

        def run(container: Container) -> None:
            log = agent.data_dir / "collector.log"
            inside = ["nsenter", f"--net=/proc/{container.pid}/ns/net"]
            process = ServerProcess(
                [*inside, COLLECTOR.path(), f"--config={AGENT_CONFIG}"],
                log=log,
                ready=lambda: b"Everything is ready" in log.read_bytes(),
            )
            running.callback(process.kill)
            process.start(agent.environment())

        yield run


def wait_for(agent: Collector, names: Sequence[str]) -> None:
    poll(
        lambda: events_in_archive(agent),
        until=lambda seen: seen.keys() >= set(names),
        what=f"{names} in the archive",
    )


def names(prefix: str, count: int = 20) -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


def is_live(directory: Path, container: Container) -> bool:
    return FileLock.is_held(StreamFiles(directory, container.stream_id).writer_lock)


def is_shipped(directory: Path, container: Container) -> bool:
    return FileLock.is_held(StreamFiles(directory, container.stream_id).ship_lock)


@pytest.mark.parametrize("export", ["otlp", "ship"])  # with `ship` nothing but the writer's own lock says that it lives
def test_a_container_delivers_for_a_killed_neighbour_and_never_for_one_that_lives(
    export: str, start: StartContainer, run_agent: RunAgent, agent: Collector, directory: Path
) -> None:
    first = start("node-1", OTEL_AUDIT_EXPORT=export)
    first.log(*names("first"))  # the oldest stream: whoever looks for leftovers sees it before the others
    dead = start("node-1")
    dead.log(*names("dead"))
    os.kill(first.pid, signal.SIGSTOP)  # as it reaches no collector, it must not be the one that takes over
    dead.kill()
    second = start("node-1")
    second.log(*names("second"))
    poll(lambda: is_shipped(directory, dead), what="a new owner of what the dead one left")
    os.kill(first.pid, signal.SIGCONT)

    run_agent(second)
    wait_for(agent, names("dead"))
    second.log("late")
    wait_for(agent, ["late"])  # each stream that is held had its turn meanwhile

    assert is_live(directory, first)
    assert is_live(directory, second)
    assert is_shipped(directory, first) == (export == "otlp")
    assert not any(name.startswith("first") for name in events_in_archive(agent))
    first.log(*names("more-of-first"))
    assert len({first.stream_id, second.stream_id, dead.stream_id}) == len(read_streams(directory)) == 3

    first.kill()
    wait_for(agent, [*names("first"), *names("more-of-first")])
    second.end()

    acknowledged = [*names("first"), *names("more-of-first"), *names("dead"), *names("second"), "late"]
    assert_archived_once(agent, directory, acknowledged)


@pytest.mark.parametrize("directory", ["ext4_disk"], indirect=True)
def test_a_container_made_anew_delivers_what_its_predecessor_left_on_their_volume(
    start: StartContainer, run_agent: RunAgent, agent: Collector, directory: Path
) -> None:
    former = start("pod-1")
    former.log(*names("former"))
    neighbour = start("pod-2")
    neighbour.log(*names("neighbour"))
    former.kill()
    latter = start("pod-3")
    latter.log(*names("latter"))

    run_agent(latter)

    wait_for(agent, [*names("former"), *names("latter")])
    assert is_live(directory, neighbour)
    assert is_shipped(directory, neighbour)
    latter.end()
    assert events_in_archive(agent) == dict.fromkeys([*names("former"), *names("latter")], 1)


@pytest.mark.parametrize("directory", ["memory_disk"], indirect=True)
def test_streams_of_another_host_are_left_until_somebody_says_that_it_is_gone(
    start: StartContainer, run_agent: RunAgent, agent: Collector, collector: Collector, directory: Path
) -> None:
    foreign = start("node-1")
    foreign.log(*names("foreign"))
    foreign.kill()
    former = start("node-2")
    former.log(*names("former"))
    former.kill()
    latter = start("node-2")
    latter.log(*names("latter"))

    run_agent(latter)
    wait_for(agent, names("former"))  # it is younger than the foreign one, so that one has been looked at
    latter.end()

    assert events_in_archive(agent).keys() == {*names("former"), *names("latter")}
    here = service_environment(collector.http_endpoint, directory)
    report = json.loads(otel_audit("ship", "--once", "--json", str(directory), env=here, exit_code=1))
    assert [left["stream_id"] for left in report["left"]] == [foreign.stream_id]
    assert not events_in_archive(collector)

    otel_audit("ship", "--once", "--adopt-foreign", str(directory), env=here)

    wait_for(collector, names("foreign"))
    assert events_in_archive(collector) == dict.fromkeys(names("foreign"), 1)


@pytest.mark.usefixtures("_namespaces")
def test_uvicorn_as_the_first_process_of_a_container_delivers_by_its_exit_handlers(
    collector: Collector, directory: Path, tmp_path: Path
) -> None:
    # It sends itself the signal again, which the kernel does not deliver to process 1: so it returns.
    environment = service_environment(collector.http_endpoint, directory)
    inside = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc"]
    with Service(
        "uvicorn", log=tmp_path / "log", environment=environment, variant="careless", inside=inside
    ) as service:
        service.wait_until_ready()
        with Callers(service.url) as callers:
            callers.wait_for(50)
            os.kill(only_child(service.pid), signal.SIGTERM)
            assert service.wait() == 0

    assert_archived_once(collector, directory, callers.acknowledged)
