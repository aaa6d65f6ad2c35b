"""The way of a batch from the journal to an exporter, and what becomes of it.

In reading order:

* `processor`: a process that logs has one `BatchProcessor`. It starts a thread for each exporter, and a keeper.
* `holdings`: the streams that the process may export, its own and those that it took over from dead processes.
* `worker`: the thread of one exporter. It gives each of its streams a turn, and waits while the destination is away.
* `stream_export`: one turn. It reads the next lines behind the cursor, sends them as a `Batch`, and moves the cursor.
* `halving`: a batch that is refused is halved until the lines that are to blame stand alone.
* `destination`: one exporter over all streams: what it accepted last, and the growing pauses between failures.
* `outcomes`: what an exporter is given, and its three answers: `Accepted`, `Refused`, `Unavailable`.
* `otlp`, `jsonl`, `console`, `sdk_exporter`: the exporters. `suppression` keeps what an export causes out of the
  telemetry.
* `counts`, `metrics`: the counts of a process, for `stats()` and for a meter provider.
* `sweep`: the same delivery on the caller's thread and without waiting, for `otel-audit ship --once`.
"""
