"""A trail that is born where nothing can be written yet: said, counted, and begun by itself when it can be."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import otel_audit
from otel_audit.errors import AuditUnavailable, JournalFull, JournalUnwritable
from otel_audit.journal.files import make_directory
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.locks import prove_locks
from otel_audit.logger import AuditLogger
from otel_audit.settings import OnLoss
from otel_audit.verification.findings import Class, Verdict
from otel_audit.verification.verify import verify_directory
from tests.journal.writing import ids_of, leave_no_room, lines_of, start_script, the_stream

WITH_FEW_DESCRIPTORS = """
    import os, resource, sys
    import otel_audit

    directory, left = sys.argv[1], int(sys.argv[2])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    audit = otel_audit.configure(directory=directory, service_name="shop", export="none")
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for descriptor in held[:left]:
            os.close(descriptor)
    kept = audit.log_mcp_call(tool_name="first", outcome="success").durable
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kept += audit.log_mcp_call(tool_name="second", outcome="success").durable
    counts = audit.stats()
    audit.close()
    print(kept, counts.dropped, flush=True)
"""


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@contextmanager
def no_room(disk: Path) -> Iterator[None]:
    leave_no_room(disk)
    yield
    (disk / "ballast").unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    remount(disk, "ro")
    yield
    remount(disk, "rw")


@contextmanager
def inodes(disk: Path, free: int) -> Iterator[None]:
    there = 1 + sum(1 for _ in disk.rglob("*"))
    remount(disk, f"nr_inodes={there + free}")
    yield
    remount(disk, "nr_inodes=1000")


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def a_service(directory: Path, rule: OnLoss) -> AuditLogger:
    return otel_audit.configure(directory=directory, service_name="shop", export="none", on_loss=rule)


def logged(audit: AuditLogger, *names: str) -> list[str]:
    """Log an event for each name, and return the ids of those that were acknowledged."""
    kept = []
    for name in names:
        try:
            receipt = audit.log_mcp_call(tool_name=name, outcome="success")
        except AuditUnavailable:
            continue
        assert receipt is not None
        if receipt.durable:
            kept.append(str(receipt.event_id))
    return kept


def assert_nothing_is_lost_unsaid(audit: AuditLogger, directory: Path, kept: list[str]) -> None:
    """Log once more, where it works again, and close: what was kept is there, the rest is counted, all is signed."""
    kept = [*kept, *logged(audit, "after")]
    counts = audit.stats()
    audit.close()

    lines = lines_of(the_stream(directory))
    gaps = [event for event in map(json.loads, lines) if event.get("system") == "gap"]
    assert ids_of(lines) == kept
    assert (counts.emitted, counts.dropped) == (3, 3 - len(kept))
    assert sum(gap["gap"]["lines"] for gap in gaps) == counts.dropped
    report = verify_directory(directory)
    assert report.verdict is Verdict.CONSISTENT
    assert [each for each in report.all_findings if each.weight is not Class.NOTICE] == []
    assert report.streams[0].signed_to == report.streams[0].last_seq
    assert LedgerFiles(directory).segments() == [1]


@pytest.mark.processes
@pytest.mark.parametrize("rule", OnLoss)
@pytest.mark.parametrize("lack", ["blocks", "read-only", "0 inodes", "1 inode", "2 inodes", "3 inodes", "5 inodes"])
def test_a_trail_begins_by_itself_once_its_disk_takes_files(lack: str, rule: OnLoss, small_disk: Path) -> None:
    directory = small_disk / "audit"
    audit = a_service(directory, rule)
    match lack.split():
        case ["blocks"]:
            scarce = no_room(small_disk)
        case ["read-only"]:
            scarce = read_only(small_disk)
        case [free, _]:
            scarce = inodes(small_disk, int(free))
    with scarce:
        kept = logged(audit, "first", "second")
        audit.flush(timeout_s=1)  # the ledger tries too, and fails

    assert_nothing_is_lost_unsaid(audit, directory, kept)


@pytest.mark.parametrize("rule", OnLoss)
@pytest.mark.parametrize("size_bytes", [0, 1, 800, 1100, 1500, 1900, 2300, 2700])
def test_a_limit_on_the_size_of_files_ends_no_process_and_no_line_in_the_middle(
    size_bytes: int, rule: OnLoss, tmp_path: Path
) -> None:
    audit = a_service(tmp_path / "audit", rule)
    with files_up_to(size_bytes):
        kept = logged(audit, "first", "second")
        audit.flush(timeout_s=1)

    assert_nothing_is_lost_unsaid(audit, tmp_path / "audit", kept)


def test_a_limit_on_the_size_of_files_is_what_the_error_says_to_raise(tmp_path: Path) -> None:
    audit = a_service(tmp_path / "audit", OnLoss.CLOSED)

    with files_up_to(0), pytest.raises(JournalFull, match=r"raise the limit of the size of a file \(LimitFSIZE=, "):
        audit.log_mcp_call(tool_name="first", outcome="success")

    audit.close()


@pytest.mark.processes
@pytest.mark.parametrize("left", range(5))
def test_a_lack_of_descriptors_costs_no_event_that_is_not_counted(left: int, tmp_path: Path) -> None:
    with start_script(WITH_FEW_DESCRIPTORS, tmp_path / "audit", left) as process:
        said, _ = process.communicate(timeout=60)
    kept, dropped = map(int, said.split())

    lines = lines_of(the_stream(tmp_path / "audit"))
    assert (len(ids_of(lines)), kept + dropped) == (kept, 2)
    report = verify_directory(tmp_path / "audit")
    assert [each for each in report.all_findings if each.weight is not Class.NOTICE] == []


@pytest.mark.parametrize(
    ("made", "got"),
    [
        ("a file", "got a file; remove it, or set OTEL_AUDIT_DIR"),
        ("a loop", "got a link that leads nowhere; remove it, or set OTEL_AUDIT_DIR"),
        ("a link to nothing", "got a link that leads nowhere; remove it, or set OTEL_AUDIT_DIR"),
        ("below a file", "got Not a directory; mount a writable volume there, or set OTEL_AUDIT_DIR"),
        ("a long name", "got File name too long; mount a writable volume there, or set OTEL_AUDIT_DIR"),
    ],
)
def test_what_is_no_directory_is_said_with_what_it_is(made: str, got: str, tmp_path: Path) -> None:
    place = tmp_path / ("long" * 100 if made == "a long name" else "place")
    if made in ("a file", "below a file"):
        place.touch()
    elif made != "a long name":
        place.symlink_to(place if made == "a loop" else tmp_path / "nothing" / "there")
    directory = place / "audit" if made == "below a file" else place

    with pytest.raises(JournalUnwritable) as caught:
        otel_audit.configure(directory=directory, service_name="shop", export="none")

    assert str(caught.value).startswith(f"{directory}: expected a directory that this process (uid ")
    assert str(caught.value).endswith(got)


@pytest.mark.processes
def test_what_the_disk_refuses_is_said_with_a_remedy_that_helps(small_disk: Path) -> None:
    with inodes(small_disk, 0), pytest.raises(JournalUnwritable, match=r"free space and inodes \(df, df -i\)"):
        prove_locks(small_disk)
    with read_only(small_disk), pytest.raises(JournalUnwritable, match="got Read-only file system; mount it writable"):
        make_directory(small_disk)
