"""Read a trail from a journal directory, a collector's archive, Parquet files, a log of events or a log store.

The life of one reading, in order:

1. `location`: find out what a path or a URL holds, and open it.
2. `store`: the interface to what was opened. A store returns journal lines, and reports everything else as what it is.
3. `directory`, `archive`, `event_log`, `columns` (Parquet), `loki` and `victorialogs`: the stores. `lines` reads files,
   through `compression` and the journal's own reader, and `endpoint` queries log stores.
4. `sorting`: sort the records of a store that are in no order, on disk.
"""
