"""One run of the chaos with one contender, from the first start to the verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from otel_audit.journal.census import census
from tests.chaos.contenders import ContenderName
from tests.chaos.crew import (
    OTEL_AUDIT,
    WRITER,
    CollectorMember,
    Member,
    ProcessMember,
    shipper_environment,
    shippers,
    writers,
)
from tests.chaos.disk import SmallDisk, small_disk
from tests.chaos.journal_copy import read_journal
from tests.chaos.ledger import is_child, read_ledger
from tests.chaos.orphans import adopted_orphans, orphans
from tests.chaos.plan import SHIPPERS, Act, Role, Step, count, plan
from tests.chaos.verdict import Delivery, archived, judge_ours, judge_stock
from tests.servers import Collector, poll

__all__ = ["Result", "run"]

_CALM_S: Final = 2.0
_DRAIN_TIMEOUT_S: Final = 120.0
_ORPHANS_END_S: Final = 60.0  # each has an alarm before that
_COMMAND_TIMEOUT_S: Final = 120.0
_LOOK_EVERY_S: Final = 0.1
_DISK_MIB: Final = 24
_DISK_MIB_A_SECOND: Final = 0.5  # several times what is logged: it is the filler that makes it full
_RETENTION: Final = {"OTEL_AUDIT_RETENTION_BYTES": "200000"}
_ROTATION: Final = "exporters::file/archive::rotation::max_megabytes: 8"


@dataclass(frozen=True, slots=True)
class Result:
    """What was done, and what came of it. `fills` is None where no small disk can be mounted, or none is used."""

    contender: ContenderName
    seed: int
    seconds: float
    kills: Mapping[Role, int]
    hangs: Mapping[Role, int]
    forks: int
    leaves: int
    outages: int
    fills: int | None
    streams: int
    pieces: int
    removed: int
    delivery: Delivery
    problems: Sequence[str]

    @property
    def kept_its_word(self) -> bool:
        """Nothing that was acknowledged is lost, nothing came that nobody logged, and every number is right."""
        return not self.problems


def run(
    contender: ContenderName,
    *,
    seed: int,
    seconds: float,
    place: Path,
    tell: Callable[[str], None],
    retention: bool = False,
) -> Result:
    """Everything started, hurt, healed, delivered and judged. `place` is an empty directory, for all files.

    `retention`: what is delivered is removed from the journal as soon as may be.

    Takes up to five minutes longer than `seconds`; nothing that was started runs when it returns.
    """
    return _Run(contender, seed, seconds, place, tell, retention).result()


class _Run:
    def __init__(
        self,
        contender: ContenderName,
        seed: int,
        seconds: float,
        place: Path,
        tell: Callable[[str], None],
        retention: bool,
    ) -> None:
        self._contender = contender
        self._is_ours = contender is ContenderName.OURS
        self._seed = seed
        self._seconds = seconds
        self._place = place
        self._tell = tell
        self._retention = retention
        self._journal = place / "disk" / "journal"
        self._ledgers = place / "ledger"
        self._logs = place / "logs"
        self._began = time.monotonic()
        self._calm: set[str] = set()
        self._problems: list[str] = []

    def result(self) -> Result:
        for directory in (self._ledgers, self._logs):
            directory.mkdir(parents=True)
        with ExitStack() as stack:
            disk = stack.enter_context(self._disk())
            self._journal.mkdir(parents=True, exist_ok=True)
            stack.enter_context(adopted_orphans(WRITER))
            collector = stack.enter_context(Collector(self._place / "collector", overrides=[_ROTATION]))
            crew = stack.enter_context(self._crew(collector))
            steps = self._steps(disk)
            self._play(steps, crew, disk)
            self._say("calm again")
            status = self._finish(crew, collector)
            collector.kill()
            self._say("comparing the ledger with the archive")
            return self._judged(steps, crew, collector, disk, status)

    @contextmanager
    def _disk(self) -> Iterator[SmallDisk | None]:
        mib = int(_DISK_MIB + _DISK_MIB_A_SECOND * self._seconds)
        with small_disk(self._place / "disk", mib=mib) if self._is_ours else ExitStack() as disk:
            if self._is_ours and disk is None:
                self._say("no tmpfs can be mounted here (needs root): no disk will be full")
            yield disk if isinstance(disk, SmallDisk) else None

    @contextmanager
    def _crew(self, collector: Collector) -> Iterator[Mapping[Role, Sequence[Member]]]:
        places = {"journal": self._journal, "logs": self._logs}
        more = _RETENTION if self._retention else {}
        writing = writers(self._contender, collector, ledgers=self._ledgers, seed=self._seed, more=more, **places)
        shipping = shippers(SHIPPERS if self._is_ours else 0, collector, more=more, **places)
        try:
            for member in [*writing, *shipping]:
                member.start()
            yield {Role.WRITER: writing, Role.SHIPPER: shipping, Role.COLLECTOR: [CollectorMember(collector)]}
        finally:
            for member in [*writing, *shipping]:
                member.kill()

    def _steps(self, disk: SmallDisk | None) -> Mapping[Role, Sequence[Step]]:
        """Those of the plan that apply: the stock SDK has no journal and no shipper."""
        left_out = {Role.SHIPPER} if not self._is_ours else set()
        left_out |= {Role.DISK} if disk is None else set()
        return {role: steps for role, steps in plan(self._seed, self._seconds).items() if role not in left_out}

    def _play(
        self, steps: Mapping[Role, Sequence[Step]], crew: Mapping[Role, Sequence[Member]], disk: SmallDisk | None
    ) -> None:
        """Each role on its own thread, so that nobody waits for the start of another one."""
        began, abort = time.monotonic(), threading.Event()
        with ThreadPoolExecutor(len(Role)) as pool:
            try:
                playing = [
                    pool.submit(self._play_role, steps.get(role, ()), crew.get(role, ()), disk, began, abort)
                    for role in Role
                ]
                done, _ = wait(playing, return_when=FIRST_EXCEPTION)
            finally:
                abort.set()
        for each in done:
            each.result()

    def _play_role(
        self,
        steps: Sequence[Step],
        members: Sequence[Member],
        disk: SmallDisk | None,
        began: float,
        abort: threading.Event,
    ) -> None:
        for step in steps:
            _pass_time(began + step.at_s, members, abort)
            if abort.is_set():
                return
            if step.role is Role.DISK and disk is not None:
                disk.fill() if step.act is Act.FILL else disk.free()
            else:
                _perform(step.act, members[step.index])
        _pass_time(began + self._seconds, members, abort)

    def _finish(self, crew: Mapping[Role, Sequence[Member]], collector: Collector) -> Mapping[str, Any]:
        """Nobody is hurt any more: the writers come to their end, and everything is delivered."""
        _pass_time(time.monotonic() + _CALM_S, [*crew[Role.WRITER], *crew[Role.SHIPPER]], threading.Event())
        self._calm = {member.instance for member in crew[Role.WRITER] if isinstance(member, ProcessMember)}
        self._end(crew[Role.WRITER])
        poll(lambda: orphans(WRITER), until=lambda left: not left, timeout_s=_ORPHANS_END_S, what="no forked child")
        if not self._is_ours:
            return {}
        self._say("the writers have ended")
        try:
            poll(
                lambda: census(self._journal).totals,
                until=lambda totals: totals.pending == 0,
                timeout_s=_DRAIN_TIMEOUT_S,
                what="nothing to be pending",
            )
        except AssertionError as error:
            self._problems.append(str(error))
        self._say("nothing is pending")
        self._end(crew[Role.SHIPPER])
        self._ship_the_rest(collector)
        return self._status(collector)

    def _end(self, members: Sequence[Member]) -> None:
        for member in members:
            assert isinstance(member, ProcessMember)
            member.end()
            self._problems += member.surprises

    def _ship_the_rest(self, collector: Collector) -> None:
        done = self._command(collector, "ship", "--once", "--json")
        left = json.loads(done.stdout)["left"] if done.stdout else done.stderr
        if done.returncode != 0 or left:
            self._problems.append(f"ship --once: expected to leave nothing, got exit code {done.returncode}: {left}")

    def _status(self, collector: Collector) -> Mapping[str, Any]:
        done = self._command(collector, "status", "--json")
        status: Mapping[str, Any] = json.loads(done.stdout)
        return status

    def _command(self, collector: Collector, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [OTEL_AUDIT, command, *options, str(self._journal)],
            env=shipper_environment(collector),
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )

    def _judged(
        self,
        steps: Mapping[Role, Sequence[Step]],
        crew: Mapping[Role, Sequence[Member]],
        collector: Collector,
        disk: SmallDisk | None,
        status: Mapping[str, Any],
    ) -> Result:
        records = archived(collector.archive_path)
        ledger = read_ledger(self._ledgers)
        streams = pieces = removed = 0
        if self._is_ours:
            shutil.copytree(self._journal, self._place / "journal")  # the disk goes, what was judged stays
            old = archived(collector.archive_path) if self._retention else ()
            journal = read_journal(
                self._place / "journal", self._place / "whole-lines", writers=ledger.instances, archive=old
            )
            streams, pieces, removed = len(journal.instances), journal.pieces, journal.put_back
            delivery = judge_ours(ledger, records, journal, status, calm=self._calm)
        else:
            delivery = judge_stock(ledger, records)
        return Result(
            contender=self._contender,
            seed=self._seed,
            seconds=self._seconds,
            kills={role: sum(member.kills for member in members) for role, members in crew.items()},
            hangs={role: sum(member.hangs for member in members) for role, members in crew.items()},
            forks=sum(map(is_child, ledger.instances)),
            leaves=sum(count(each, Act.LEAVE) for each in steps.values()),
            outages=count(steps[Role.COLLECTOR], Act.OUTAGE),
            fills=count(steps[Role.DISK], Act.FILL) if disk is not None else None,
            streams=streams,
            pieces=pieces,
            removed=removed,
            delivery=delivery,
            problems=[*self._problems, *delivery.problems],
        )

    def _say(self, text: str) -> None:
        self._tell(f"{self._contender}, {time.monotonic() - self._began:.0f} s: {text}")


def _perform(act: Act, member: Member) -> None:
    match act:
        case Act.KILL | Act.OUTAGE:
            member.kill()
        case Act.LEAVE:
            member.leave()
        case Act.START:
            member.start()
        case Act.HANG:
            member.hang()
        case Act.RESUME:
            member.resume()
        case Act.FILL | Act.FREE:
            raise AssertionError(f"{act}: expected an act on a process")


def _pass_time(until: float, members: Sequence[Member], abort: threading.Event) -> None:
    """Wait for a moment of the monotonic clock; whoever ended by himself meanwhile is started again."""
    while (left_s := until - time.monotonic()) > 0 and not abort.is_set():
        for member in members:
            member.tend()
        abort.wait(min(left_s, _LOOK_EVERY_S))
