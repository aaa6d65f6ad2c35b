"""Ask a trail: by filters, or in SQL over one documented view.

`filters` holds what is asked, `columns` what the view `events` has of a line. `gathering` finds the files of every
source that can be read as they are, and writes the lines of all others into one temporary file. `database` puts both
before DuckDB, which reads nothing else. Everything is an extra: `pip install 'otel-audit[query]'`.
"""
