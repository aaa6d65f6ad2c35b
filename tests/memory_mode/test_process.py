"""A process with a trail in memory: its forks, the files it leaves alone, how large it grows."""

from __future__ import annotations

from pathlib import Path

from tests.delivery.audited_server import AuditedServer
from tests.journal.writing import finish, said, start_script
from tests.memory_mode.trail import arrived, ids

FORKED = """
    import os, sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    audit = configure(durability="memory", directory="/proc/nowhere", endpoint=sys.argv[1], protocol="http/protobuf")
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


def test_a_forked_child_has_a_stream_of_its_own_and_leaves_its_parents_lines_alone(server: AuditedServer) -> None:
    process = start_script(FORKED, server.endpoint)
    assert said(process) == "0"
    assert said(process) == "40 40"
    finish(process)

    streams = sorted(ids(events) for events in arrived(server).values())
    assert streams == [
        [f"child-{name}" for name in range(20, 40)],
        [f"parent-{name}" for name in range(40)],
    ]


TOUCHES_NOTHING = """
    import os, sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    touched = []

    def hook(name, arguments):
        if name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.listdir", "os.scandir"):
            touched.append((name, arguments))
        if name == "open" and (sys.argv[2] in str(arguments[0]) or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
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
    print(touched, flush=True)
"""


def test_no_file_and_no_directory_is_touched(server: AuditedServer, tmp_path: Path) -> None:
    process = start_script(TOUCHES_NOTHING, server.endpoint, tmp_path / "audit")
    assert said(process) == "100"
    assert said(process) == "[]"
    finish(process)

    assert list(tmp_path.iterdir()) == []


FLAT = """
    import os, sys, time
    from otel_audit.configuration import configure
    from otel_audit.delivery.outcomes import Accepted
    from otel_audit.event import AuditEvent
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
    settings = Settings.load({}, {"durability": "memory", "export": "console"})
    audit = AuditLogger(Trail(settings, exporters=[exporter]))

    def resident_kib():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    def log(count):
        for _ in range(count):
            while audit.log_authn(outcome="success", detail="x" * 300).seq is None:
                time.sleep(0.001)

    log(10_000)
    before = resident_kib()
    log(100_000)
    grown = resident_kib() - before
    audit.close()
    stats = audit.stats()
    print(grown, stats.exported, stats.emitted - stats.dropped, flush=True)
"""


def test_memory_stays_flat_over_a_hundred_thousand_events() -> None:
    process = start_script(FLAT)
    grown_kib, exported, recorded = map(int, said(process).split())
    finish(process)

    assert exported == recorded == 110_000
    assert grown_kib < 10 * 1024
