"""A process with a trail in memory: its forks, the files it touches, how large it and its directory grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.delivery.audited_server import AuditedServer
from tests.journal.writing import finish, said, start_script
from tests.memory_mode.trail import arrived, ids

pytestmark = pytest.mark.processes

FORKED = """
    import os, sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    audit = configure(durability="memory", directory=sys.argv[2], endpoint=sys.argv[1], protocol="http/protobuf")
    for name in range(20):
        audit.log(AuditEvent(event_type="test", event_id=f"parent-{name}"))
    child = os.fork()
    who = "parent" if child else "child"
    for name in range(20, 40):
        audit.log(AuditEvent(event_type="test", event_id=f"{who}-{name}"))
    if not child:
        audit.close()
        os._exit(0 if audit.stats().exported == audit.stats().emitted == 20 else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    audit.close()
    print(audit.stats().exported, audit.stats().emitted, flush=True)
"""


def test_a_forked_child_has_a_stream_of_its_own_and_leaves_its_parents_lines_alone(
    server: AuditedServer, memory_disk: Path
) -> None:
    process = start_script(FORKED, server.endpoint, memory_disk)
    assert said(process) == "0"
    assert said(process) == "40 40"
    finish(process)

    streams = sorted(ids(events) for events in arrived(server).values())
    assert streams == [
        [f"child-{name}" for name in range(20, 40)],
        [f"parent-{name}" for name in range(40)],
    ]


TOUCHES = """
    import os, sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    touched = []

    def hook(name, arguments):
        if name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
            touched.append((name, arguments))
        if name == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            touched.append((name, arguments))

    settings = dict(durability="memory", directory=sys.argv[2], endpoint=sys.argv[1], protocol="http/protobuf")
    configure(**settings).close()  # what is imported on the way
    sys.addaudithook(hook)
    audit = configure(**settings)
    for name in range(100):
        audit.log(AuditEvent(event_type="test", event_id=str(name)))
    audit.flush()
    print(audit.stats().exported, flush=True)
    audit.close()
    audit.stats(), audit.flush()
    elsewhere = [each for each in touched if isinstance(each[1][0], str) and not each[1][0].startswith(sys.argv[2])]
    print(len(touched) > 5, elsewhere, flush=True)
"""


def test_nothing_is_written_but_in_its_directory(server: AuditedServer, memory_disk: Path) -> None:
    process = start_script(TOUCHES, server.endpoint, memory_disk / "audit")
    assert said(process) == "100"
    assert said(process) == "True []"
    finish(process)


FLAT = """
    import os, sys, time
    from pathlib import Path
    from otel_audit.delivery.outcomes import Accepted
    from otel_audit.journal.files import journal_bytes
    from otel_audit.logger import AuditLogger
    from otel_audit.settings import Settings
    from otel_audit.trail import Trail

    class Counts:
        name, delay_s, lines = "counts", 0.01, 0

        def export(self, batch):
            self.lines += len(batch.lines)
            return Accepted()

        def close(self):
            pass

    exporter = Counts()
    given = {"durability": "memory", "export": "console", "directory": sys.argv[1], "queue_bytes": 4 << 20}
    audit = AuditLogger(Trail(Settings.load({}, given), exporters=[exporter]))
    largest = 0

    def resident_kib():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    def log(count):
        global largest
        for number in range(count):
            while audit.log_authn(outcome="success", detail="x" * 300).seq is None:
                time.sleep(0.001)
            if number % 100 == 0:
                largest = max(largest, journal_bytes(Path(sys.argv[1])))

    log(10_000)
    before = resident_kib()
    log(100_000)
    grown = resident_kib() - before
    audit.close()
    stats = audit.stats()
    print(grown, largest, stats.exported, stats.emitted - stats.dropped, flush=True)
"""


def test_neither_the_process_nor_its_directory_grows_over_a_hundred_thousand_events(memory_disk: Path) -> None:
    process = start_script(FLAT, memory_disk)
    grown_kib, largest, exported, recorded = map(int, said(process).split())
    finish(process)

    assert exported == recorded == 110_000
    assert grown_kib < 10 * 1024
    assert largest < 5 * 1024 * 1024  # the bound, and what is written until the directory is measured
