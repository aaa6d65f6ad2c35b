# ruff: noqa: E402 - the order of imports is what is tested
"""Fifty greenlets log, one flushes, a thread of the pool and a forked child log too: `greenlets.py ORDER [init]`.

ORDER says what came before gevent patched the standard library: nothing, the import, or the first event. `init`: the
application has gRPC's own support for gevent on.
"""

import os
import sys

ORDER = sys.argv[1]

if ORDER == "nothing":
    from gevent import monkey

    monkey.patch_all()

import otel_audit

audit = otel_audit.configure()
if ORDER == "event":
    audit.log_authn(outcome="success", detail="before")
    assert audit.flush(timeout_s=20).complete
if ORDER != "nothing":
    import warnings

    from gevent import monkey

    warnings.simplefilter("ignore")  # of modules that were imported before, which is what is tested
    monkey.patch_all()

import gevent

if "init" in sys.argv:
    import grpc.experimental.gevent

    grpc.experimental.gevent.init_gevent()

turns = 0


def take_turns() -> None:
    global turns
    while True:
        turns += 1
        gevent.sleep(0)


def log(detail: str) -> None:
    receipt = audit.log_authn(outcome="success", detail=detail)
    assert receipt.durable, receipt


audit.start()
loaded = set(sys.modules)
gevent.joinall([gevent.spawn(log, f"greenlet-{number}") for number in range(50)], raise_error=True)
gevent.get_hub().threadpool.apply(log, ("pool",))
others = gevent.spawn(take_turns)
assert audit.flush(timeout_s=20).complete
assert turns, "the other greenlets stood still while one flushed"
# A greenlet that imports the same module as a thread of ours waits for it, if its hub is not idle; else it fails.
assert ORDER == "event" or not set(sys.modules) - loaded, "delivery imports"
if os.fork() == 0:
    log("child")
    assert audit.flush(timeout_s=20).complete
    os._exit(0)
assert os.wait()[1] == 0
others.kill()
log("last")
audit.close()
assert audit.stats().pending == 0, audit.stats()
