"""The last step of an event before its sink: what a fork leaves of it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.processes

A_CHILD_OF_A_WRITING_PARENT = """
    import os, signal, sys, threading
    from otel_audit.logger import AuditLogger
    from otel_audit.sinks import AuditSink

    class Stuck(AuditSink):
        def emit(self, event):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                threading.Event().wait()
            taken.append(event)

    inside, taken = threading.Event(), []
    audit = AuditLogger(Stuck())
    audit.log_authn(outcome="success")
    threading.Thread(target=audit.log_authn, kwargs={"outcome": "success"}, daemon=True).start()
    inside.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)
        taken.clear()
        audit.log_authn(outcome="failure")
        stats = audit.stats()
        print([event.outcome for event in taken], stats.emitted, stats.exported, flush=True)
    os._exit(os.waitpid(child, 0)[1] and 1 if child else 0)
"""


def test_a_child_records_although_a_thread_of_its_parent_was_inside_the_sink_at_the_fork() -> None:
    script = textwrap.dedent(A_CHILD_OF_A_WRITING_PARENT)

    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == "['failure'] 1 1\n"
