"""Whether a journal can be kept in a directory: real directories, a real full disk, a clock that is set wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from otel_audit.diagnosis.directory import UNFIT, directory_findings
from otel_audit.diagnosis.findings import Finding
from otel_audit.journal.room import Space
from otel_audit.settings import Settings
from tests.cli.journals import a_journal, record
from tests.journal.writing import leave_no_room

YEAR_NS = 365 * 86_400 * 10**9


def settings_for(directory: Path, **more: object) -> Settings:
    return Settings.load({}, {"directory": str(directory), **more})


def found(directory: Path, **more: object) -> dict[str, Finding]:
    return {finding.check: finding for finding in directory_findings(settings_for(directory, **more))}


def tree(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


def test_a_directory_that_is_missing_is_not_made_and_nothing_is_left(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "shop"

    findings = found(directory)

    assert findings["directory"] == Finding(
        "directory", f"{directory} does not exist yet, and can be made by uid {os.geteuid()}"
    )
    assert "permissions" not in findings
    assert tree(tmp_path) == []


def test_the_directory_of_a_live_journal_is_left_as_it_was(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a")
    before = tree(tmp_path)

    findings = found(tmp_path)

    assert tree(tmp_path) == before
    assert list(findings) == [
        *("directory", "permissions", "space", "file system", "locks", "journal", "other hosts", "clock"),
    ]
    settled = ("directory", "permissions", "locks", "clock", "journal", "other hosts")
    assert [name for name in settled if not findings[name].ok] == []
    journal.close()


def test_a_path_below_a_file_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    findings = found(tmp_path / "file" / "audit")

    assert findings["directory"].says.endswith(f"got Not a directory at {tmp_path / 'file'}")
    assert "set OTEL_AUDIT_DIR" in findings["directory"].remedy
    assert set(findings) == {"directory", "clock"}


def test_a_link_that_leads_nowhere_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "missing")

    assert not found(tmp_path / "link")["directory"].ok


@pytest.mark.parametrize(
    ("directory_mode", "file_mode", "words"),
    [
        (0o700, 0o600, ""),
        (0o755, 0o600, ""),
        (0o750, 0o664, ""),
        (0o700, 0o664, ""),
        (0o757, 0o600, "every user can remove and replace its files"),
        (0o1777, 0o600, "every user can put files into it"),
        (0o711, 0o664, "every user can read the events"),
    ],
)
def test_events_that_every_user_can_reach_are_a_finding(
    directory_mode: int, file_mode: int, words: str, tmp_path: Path
) -> None:
    directory = tmp_path / "audit"
    directory.mkdir()
    directory.chmod(directory_mode)

    finding = found(directory, file_mode=file_mode)["permissions"]

    assert finding.ok is not bool(words)
    assert words in finding.says
    assert f"mode {directory_mode:04o}" in finding.says
    assert finding.ok or f"chmod o-rwx {directory}" in finding.remedy


def test_a_file_that_every_user_can_read_is_named(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    segment = record(journal, "a").segment(1)
    journal.close()
    tmp_path.chmod(0o755)
    assert found(tmp_path)["permissions"].ok

    segment.chmod(0o644)

    assert f"every user can read {segment.name}" in found(tmp_path)["permissions"].says


@pytest.mark.processes
def test_memory_and_little_room_are_findings(small_disk: Path) -> None:
    findings = found(small_disk / "audit")

    assert findings["file system"].says.startswith(f"tmpfs at {small_disk}: it is memory")
    assert findings["file system"].remedy == "put OTEL_AUDIT_DIR on a disk"
    assert findings["space"].says == "0.2 MiB free, expected 1.0 GiB"
    assert findings["directory"].ok
    assert findings["locks"].ok


@pytest.mark.processes
def test_room_for_ten_segments_is_expected(small_disk: Path) -> None:
    assert found(small_disk, segment_bytes=1024**3)["space"].says.endswith("expected 10.0 GiB")


@pytest.mark.processes
def test_a_full_disk_is_a_finding_and_no_failure(small_disk: Path) -> None:
    leave_no_room(small_disk)

    findings = found(small_disk)

    assert findings["space"].says.startswith("0 bytes free, less than a tenth of the floor")
    assert found(small_disk, free_bytes=0)["space"].says == "0.0 MiB free, expected 1.0 GiB"
    assert not findings["space"].ok


@pytest.mark.parametrize(
    ("off_ns", "words"),
    [
        (0, ""),
        (-60 * 10**9, " s off the "),
        (60 * 10**9, " s off the "),
        (-20 * YEAR_NS, " s off the "),
    ],
)
def test_a_clock_that_is_off_that_of_the_file_system_is_a_finding(off_ns: int, words: str, tmp_path: Path) -> None:
    findings = directory_findings(settings_for(tmp_path), time_ns=lambda: time.time_ns() + off_ns)

    clock = findings[-1]
    assert clock.check == "clock"
    assert clock.ok is not bool(words)
    assert words in clock.says


def test_a_clock_that_was_never_set_is_a_finding_also_without_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    findings = directory_findings(settings_for(tmp_path / "file" / "audit"), time_ns=lambda: 10**15)

    assert findings[-1] == Finding(
        "clock",
        "expected a time after 2024-01-01, got 1970-01-12T13:46:40Z",
        "set the clock of the machine, and keep it right (NTP)",
    )


def test_a_jsonl_file_elsewhere_must_be_writable_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    good, bad = tmp_path / "copies" / "a.jsonl", tmp_path / "file" / "a.jsonl"

    assert found(tmp_path / "audit", export="jsonl", jsonl_path=str(good))["jsonl"].ok
    finding = found(tmp_path / "audit", export="jsonl", jsonl_path=str(bad))["jsonl"]

    assert "Not a directory" in finding.says
    assert "OTEL_AUDIT_JSONL_PATH" in finding.remedy
    assert "jsonl" not in found(tmp_path / "audit", export="jsonl")
    assert tree(tmp_path) == [tmp_path / "file"]


def test_in_memory_mode_a_file_system_in_memory_is_right_and_needs_room_for_the_queue_only(memory_disk: Path) -> None:
    free = Space.of(memory_disk, 0).free_bytes
    findings = found(memory_disk, durability="memory", export="console")
    crowded = found(memory_disk, durability="memory", export="console", queue_bytes=4 << 30, free_bytes=0)

    assert findings["file system"].ok
    assert "gone with the machine or the container" in findings["file system"].says
    assert findings["space"].ok
    assert crowded["space"].ok == (free >= 4 << 30)
    assert not found(memory_disk)["file system"].ok


def test_free_space_below_the_floor_says_which_events_are_lost(tmp_path: Path) -> None:
    finding = found(tmp_path, free_bytes=Space.of(tmp_path, 0).free_bytes + (1 << 30))["space"]

    assert "(OTEL_AUDIT_FREE_BYTES): events with the outcome success" in finding.says
    assert finding.remedy


def test_events_that_wait_for_a_word_that_another_host_is_gone_are_a_finding(memory_disk: Path) -> None:
    journal = a_journal(memory_disk, host="f" * 32)
    record(journal, "a", "b")
    assert found(memory_disk)["other hosts"].ok  # it lives
    journal.close()

    finding = found(memory_disk)["other hosts"]

    assert finding.says.startswith("2 events of 1 stream from another host are waiting")
    assert finding.remedy.endswith(f"otel-audit ship --adopt-foreign {memory_disk}")


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "overlay", "tmpfs"])
def test_what_is_unfit_for_a_journal_says_why_and_what_to_do(kind: str) -> None:
    assert UNFIT[kind].why
    assert "OTEL_AUDIT_DIR" in UNFIT[kind].remedy


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs"])
def test_a_local_disk_is_fit_for_a_journal(kind: str) -> None:
    assert kind not in UNFIT
