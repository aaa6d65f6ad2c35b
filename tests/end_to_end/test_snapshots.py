"""A snapshot of a process that is resumed twice: two processes with one memory, and with the same pid.

The double of one that is resumed is a forked child in which no hook runs, in a process namespace of its own: it is
process 1, as the process that it is a copy of. The other threads are missing in it. In a real snapshot they are there;
the tests behind hold that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import otel_audit
from tests.chain_check import read_streams
from tests.end_to_end.test_main_path import ROOT
from tests.servers import free_port, poll
from tests.servers.otlp_grpc_server import GrpcReceived, OtlpGrpcServer
from tests.servers.otlp_server import OtlpServer
from tests.test_start import delivered, details

TWICE = """
    import ctypes, json, os, sys
    os.register_at_fork = lambda **hooks: None  # before anything asks for one: a snapshot runs none
    import threading, time
    import otel_audit

    IDLE = {"_goes_on", "_rest", "is_set_within"}  # where our threads wait, with no lock held
    audit = otel_audit.configure()
    has_begun = sys.argv[1] == "begun"

    def log(detail):
        receipt = audit.log_authn(outcome="success", detail=detail)
        print(json.dumps([receipt.stream_id, receipt.seq, receipt.event_id, detail]), flush=True)

    if has_begun:
        log("before")
        assert audit.flush(timeout_s=20).complete

    libc = ctypes.PyDLL(None, use_errno=True)

    def await_idle_threads():
        "A lock that another thread holds would be held for ever in the copy."
        sys.setswitchinterval(60)  # nobody takes the interpreter between the look and the fork
        while busy := {frame.f_code.co_name for ident, frame in sys._current_frames().items()
                       if ident != threading.get_ident()} - IDLE:
            assert time.monotonic() < deadline, busy
            time.sleep(0.01)

    def resume(name):
        await_idle_threads()
        if os.fork() == 0:  # in between, since a process can make one namespace only
            sys.setswitchinterval(0.005)
            assert libc.unshare(0x20000000) == 0, os.strerror(ctypes.get_errno())
            if os.fork() == 0:
                go_on(name)
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
        assert os.wait()[1] == 0

    def go_on(name):
        assert os.getpid() == 1
        audit.reopen()
        log(f"{name} first")
        thread = threading.Thread(target=log, args=(f"{name} in a thread",))
        thread.start()
        thread.join()
        assert audit.flush(timeout_s=20).complete

    assert os.getpid() == 1
    deadline = time.monotonic() + 30
    resume("one")
    resume("two")
    os._exit(0)
"""


def resumed_twice(directory: Path, *how: str, **environ: str) -> list[list[Any]]:
    """Stream, number, id and detail of what was logged before and in both copies."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GRPC_"))}
    own = {
        "OTEL_AUDIT_DIR": str(directory),
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_AUDIT_BATCH_DELAY_S": "60",
        "OTEL_AUDIT_CLOSE_TIMEOUT_S": "0.5",  # of the wait for threads that are missing in the copy
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["unshare", "--fork", "--kill-child", "--pid", sys.executable, "-c", textwrap.dedent(TWICE), *how],
        env={**plain, **own, **environ},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    if "unshare" in done.stderr and done.returncode:
        pytest.skip(f"namespaces cannot be made (needs root and util-linux): {done.stderr}")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("protocol", "begins", "durability"),
    [
        ("http", "begun", "os"),
        ("http", "loaded", "fsync"),
        ("grpc", "loaded", "os"),  # begun, its library would start threads in between
        ("http", "begun", "memory"),
    ],
)
def test_two_copies_that_reopen_share_no_stream_no_id_and_no_connection(
    protocol: str, begins: str, durability: str, tmp_path: Path
) -> None:
    with OtlpGrpcServer() if protocol == "grpc" else OtlpServer() as server:
        logged = resumed_twice(
            tmp_path,
            begins,
            OTEL_AUDIT_DURABILITY=durability,
            OTEL_EXPORTER_OTLP_PROTOCOL="grpc" if protocol == "grpc" else "http/protobuf",
            OTEL_EXPORTER_OTLP_ENDPOINT=server.base_url if isinstance(server, OtlpServer) else server.endpoint,
        )
        bodies = [each.message if isinstance(each, GrpcReceived) else each.body for each in server.requests]
        connections = {each.connection for each in server.requests}

    processes = 3 if begins == "begun" else 2
    assert sorted(details(bodies)) == sorted(detail for _, _, _, detail in logged)
    assert len({event_id for _, _, event_id, _ in logged}) == len(logged) == 2 * 2 + (begins == "begun")
    by_process = {detail.split()[0]: stream for stream, _, _, detail in logged}
    assert len(by_process) == len(set(by_process.values())) == len(connections) == processes
    if durability != "memory":
        streams = read_streams(tmp_path)  # with their chains
        instances = {events[0]["segment"]["resource"]["service.instance.id"] for events in streams.values()}
        assert set(by_process.values()) == set(streams)
        assert len(instances) == processes


def new_since(others: set[threading.Thread]) -> list[threading.Thread]:
    """The threads of ours that were not there before."""
    return [each for each in threading.enumerate() if each not in others and each.name.startswith("otel-audit")]


def descriptors() -> list[str]:
    """What this process has open, but for connections: the server at their other end is in it too."""
    opened = (f"/proc/self/fd/{descriptor}" for descriptor in os.listdir("/proc/self/fd"))
    return sorted(path for each in opened if os.path.lexists(each) and (path := os.readlink(each))[:7] != "socket:")


@pytest.mark.parametrize("durability", ["os", "fsync", "memory"])
def test_where_the_threads_are_there_reopening_ends_them_and_loses_nothing(
    durability: str, otlp_server: OtlpServer, tmp_path: Path
) -> None:
    # Loggers that other tests have not closed end when they like: only what is new counts.
    others, opened = set(threading.enumerate()), Counter(descriptors())
    audit = otel_audit.configure(directory=tmp_path, durability=durability, batch_delay_s=60)
    streams = set()

    def log(number: int) -> None:
        receipt = audit.log_authn(outcome="success", detail=str(number))
        assert receipt is not None
        streams.add(receipt.stream_id)

    log(0)
    assert audit.flush(timeout_s=20).complete
    threads = sorted(each.name for each in new_since(others))
    for number in range(1, 10):
        audit.reopen()
        log(number)  # not delivered when the next one comes
    assert audit.flush(timeout_s=20).complete
    poll(
        lambda: sorted(each.name for each in new_since(others)),
        until=lambda now: now == threads,
        what="the former threads to be gone",
    )
    audit.close()

    assert len(streams) == 10
    assert sorted(delivered(otlp_server), key=int) == [str(number) for number in range(10)]
    poll(
        lambda: (new_since(others), Counter(descriptors()) - opened),
        until=lambda now: now == ([], Counter()),
        what="nothing to be held any more",
    )


def test_a_logger_that_was_closed_for_the_snapshot_is_open_again(otlp_server: OtlpServer, tmp_path: Path) -> None:
    audit = otel_audit.configure(directory=tmp_path, durability="memory")
    audit.log_authn(outcome="success", detail="before")
    audit.close()

    audit.reopen()
    audit.log_authn(outcome="success", detail="after")
    audit.close()

    assert delivered(otlp_server) == ["before", "after"]


def test_what_waited_for_a_dead_collector_is_delivered_after_the_restore(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    audit = otel_audit.configure(directory=tmp_path, batch_delay_s=0.02, backoff_cap_s=1)
    audit.log_authn(outcome="success", detail="before")
    assert not audit.flush(timeout_s=0.5).complete

    audit.reopen()
    audit.log_authn(outcome="success", detail="after")
    with OtlpGrpcServer(port=port) as server:
        assert audit.flush(timeout_s=30).complete
        audit.close()

    assert sorted(details([each.message for each in server.requests])) == ["after", "before"]
