"""Read a trail from a journal directory, a collector's archive, Parquet files, a log of events or a log store.

`location` finds out what a path or a URL holds and opens it as a `Store`, the interface in `store`. The stores are
`directory`, `archive`, `event_log`, `columns` (Parquet), `loki` and `victorialogs`. `lines` reads files, through
`compression` and the journal's own reader, and `endpoint` queries log stores. `sorting` sorts records that arrive in no
order.
"""
