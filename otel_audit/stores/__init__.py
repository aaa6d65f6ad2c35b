"""Read a trail wherever it lies: a journal directory, a collector's archive, a log of events, a log store.

`location` tells what lies at a path or behind a URL and opens it as a `Store`, which `store` describes. `directory`,
`archive`, `event_log`, `columns` (Parquet), `loki` and `victorialogs` are the stores. Files are read by `lines`,
through `compression`, on the journal's own reader; log stores through `endpoint`. What arrived in no order is sorted by
`sorting`.
"""
