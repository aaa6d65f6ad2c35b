"""Ask a trail: by filters, or in SQL over one documented view.

`filters` holds what is asked, `columns` what the view `events` has of a line. `gathering` finds the files of every
source that can be read as they are, and writes the lines of all others into one temporary file. `lines` says in SQL
how to read both. `database` puts them before DuckDB, which reads nothing else. `packing` writes Parquet files.
Everything is an extra: `pip install 'otel-audit[query]'`.
"""
