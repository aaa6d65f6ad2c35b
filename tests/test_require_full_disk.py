"""On a disk that is full nothing runs that must not happen unrecorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_audit.errors import AuditUnavailable, JournalFull
from otel_audit.event import AuditEvent
from otel_audit.logger import AuditLogger
from otel_audit.operation import Operation
from otel_audit.policy import Policy
from tests.chain_check import application_events
from tests.recording import a_trail
from tests.requiring import CLOSED, Overdrawn, a_policy, both, fail, run

pytestmark = pytest.mark.processes


class Service:
    """A logger whose journal is on a small disk, which can be full."""

    def __init__(self, disk: Path, policy: Policy, **settings: object) -> None:
        self._ballast = disk.parent / "disk" / "ballast"
        self.audit = AuditLogger(a_trail(disk, free_bytes=0, **settings), policy=policy)
        self.audit.log_authn(outcome="success")

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as ballast:
            for size in (4096, 1):
                try:
                    while ballast.write(b"\0" * size):
                        pass
                except OSError:
                    continue
        with pytest.raises(AuditUnavailable):
            self._log_many()

    def _log_many(self) -> None:
        for _ in range(1000):  # the last page of the segment may have room
            self.audit.log(AuditEvent(event_type="table.fill", detail="x" * 500))

    def empty(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def service(small_disk: Path, tmp_path: Path) -> Iterator[Service]:
    made = Service(small_disk, a_policy(tmp_path, CLOSED))
    yield made
    made.audit.close()


def ended(directory: Path, kind: str) -> list[str]:
    return [event["outcome"] for event in application_events(directory) if event["event_type"] == kind]


@both
@pytest.mark.parametrize("kind", ["require", "operation"])
def test_on_a_full_disk_the_block_does_not_run(service: Service, small_disk: Path, kind: str, is_async: bool) -> None:
    begin = {"require": service.audit.require, "operation": service.audit.operation}[kind]
    service.fill()
    before = service.audit.stats()

    with pytest.raises(JournalFull):
        run(begin("table.drop"), lambda: pytest.fail("it ran"), is_async=is_async)

    after = service.audit.stats()
    assert (after.emitted, after.dropped) == (before.emitted + 1, before.dropped + 1)
    service.empty()
    run(begin("table.drop"), is_async=is_async)
    assert ended(small_disk, "table.drop") == ["unknown", "success"]


@both
@pytest.mark.parametrize("error", [None, Overdrawn()], ids=repr)
def test_an_end_that_cannot_be_recorded_is_counted_and_said_and_the_caller_gets_what_the_block_gave(
    service: Service, small_disk: Path, capfd: pytest.CaptureFixture[str], error: Exception | None, is_async: bool
) -> None:
    before = service.audit.stats().dropped

    def inside() -> None:
        service.fill()
        if error is not None:
            raise error

    running = service.audit.require("table.drop")
    raised: BaseException | None = None
    try:
        run(running, inside, is_async=is_async)
    except Overdrawn as caught:
        raised = caught

    assert raised is error
    assert running.begun is not None
    assert running.begun.durable
    assert running.receipt is not None
    assert not running.receipt.durable
    assert service.audit.stats().dropped > before + 1  # that of the filling and this one
    assert "events are lost: " in capfd.readouterr().err
    assert ended(small_disk, "table.drop") == ["unknown"]


def test_a_plain_log_of_a_closed_rule_tells_its_caller_and_one_of_an_open_rule_does_not(service: Service) -> None:
    service.fill()

    with pytest.raises(JournalFull):
        service.audit.log(AuditEvent(event_type="table.drop"))
    with pytest.raises(JournalFull):
        asyncio.run(service.audit.alog(AuditEvent(event_type="table.drop")))
    receipt = service.audit.log(AuditEvent(event_type="report.export"))
    of_helper = service.audit.log_authz(outcome="deny")

    assert receipt is not None
    assert of_helper is not None
    assert not receipt.durable
    assert not of_helper.durable


def test_a_helper_follows_the_loss_rule_of_its_event(small_disk: Path, tmp_path: Path) -> None:
    service = Service(
        small_disk,
        a_policy(tmp_path, "rules: [{outcome: denied, on_loss: closed}, {type: table.fill, on_loss: closed}]"),
    )
    service.fill()

    with pytest.raises(JournalFull):
        service.audit.log_authz(outcome="deny")
    receipt = service.audit.log_authz(outcome="allow")

    assert receipt is not None
    assert not receipt.durable
    service.audit.close()


def test_an_operation_that_only_its_end_makes_closed_tells_of_its_loss_if_the_block_raised_nothing(
    service: Service,
) -> None:
    def rename(running: Operation, then: Callable[[], object]) -> None:
        running.event.event_type = "table.drop"
        then()

    running = service.audit.operation("report.export")
    with pytest.raises(JournalFull), running:
        rename(running, service.fill)
    running = service.audit.operation("report.export")
    with pytest.raises(Overdrawn), running:
        rename(running, fail)
