"""What somebody does to the files of a stream stops no other stream, and loses no line."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from otel_audit.delivery.processor import Adoption
from otel_audit.delivery.worker import BatchLimits
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.processor.delivered import SHOP, Deliver, left_behind
from tests.servers import poll


def test_a_stream_that_cannot_be_read_does_not_keep_the_others(
    tmp_path: Path, server: AuditedServer, deliver: Deliver, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "audit"
    broken = left_behind(directory, ["lost"])
    left_behind(directory, ["a"])
    broken.ship_lock.unlink(missing_ok=True)
    broken.ship_lock.symlink_to(tmp_path / "nowhere")  # a link is never followed
    delivered = deliver(exporter_to(server), adoption=SHOP)

    delivered.processor.start()

    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")
    assert server.accepted == ["header", "a"]
    assert broken.stream_id in capfd.readouterr().err


def test_a_segment_that_cannot_be_read_does_not_keep_the_other_streams(
    tmp_path: Path, server: AuditedServer, deliver: Deliver, capfd: pytest.CaptureFixture[str]
) -> None:
    files = left_behind(tmp_path / "audit", ["late"])
    away = files.segment(1).rename(tmp_path / "away")
    files.segment(1).symlink_to(away)
    delivered = deliver(
        exporter_to(server), adoption=Adoption(lambda header: True), limits=BatchLimits(backoff_cap_s=1)
    )
    delivered.processor.start()

    delivered.write("a")

    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")
    assert "symbolic link" in poll(lambda: delivered.processor.blocked().get("otlp", ""), what="the reason")
    files.segment(1).unlink()
    away.rename(files.segment(1))
    poll(lambda: server.accepted, until=lambda names: "late" in names, what="the late one")
    assert "events stay in the journal" in capfd.readouterr().err


def test_a_file_that_is_removed_while_it_is_exported_is_exported_to_its_end(
    server: AuditedServer, deliver: Deliver
) -> None:
    delivered = deliver(exporter_to(server))
    delivered.write("a")
    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")

    delivered.files.segment(1).unlink()
    poll(lambda: delivered.journal.tend() or delivered.files.segment(1).exists(), what="the file to be put back")  # type: ignore[func-returns-value]  # called for what it does
    delivered.write("b")

    poll(lambda: server.accepted, until=lambda names: "b" in names, what="what came later")
    assert server.accepted.count("a") == 1


def test_a_descriptor_that_somebody_else_closed_is_opened_anew(server: AuditedServer, deliver: Deliver) -> None:
    delivered = deliver(exporter_to(server))
    delivered.write("a")
    poll(lambda: server.accepted, until=lambda names: names == ["header", "a"], what="the first line")

    for descriptor in descriptors_for_reading(delivered.files.segment(1)):
        os.close(descriptor)
    delivered.write("b")

    poll(lambda: server.accepted, until=lambda names: names == ["header", "a", "b"], what="the second line")
    assert delivered.processor.flush(delivered.seqs, timeout_s=20).complete


def descriptors_for_reading(path: Path) -> list[int]:
    links = {int(entry.name): os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    return [
        descriptor
        for descriptor, target in links.items()
        if target == str(path) and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    ]
