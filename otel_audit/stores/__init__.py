"""Read a trail wherever it lies: a journal directory, a collector's archive, a log of events.

`location` tells what lies at a path and opens it as a `Store`, which `store` describes. `directory`, `archive` and
`event_log` are the stores. Files are read by `lines`, through `compression`, on the journal's own reader. What arrived
in no order is sorted by `sorting`.
"""
