"""Answer questions about a trail, by filters or in SQL over one documented view.

The life of one question, in reading order:

1. `filters`: the question: words for columns, a span of time, a text, and a page of the answer.
2. `gathering`: find the files of every source that DuckDB can read directly, and write all other lines into one
   temporary file. `lines` describes both in SQL.
3. `columns`: the view `events`, with a column for each fact of a line.
4. `database`: run the question in DuckDB, which can read nothing but these files. `interruption` lets Ctrl-C end it,
   and `unanswered` says why there is no answer.
5. `index`: for many questions about one trail, copy its events once into a table on disk.
6. `packing`: write a trail into Parquet files.

Everything is an extra: `pip install 'otel-audit[query]'`.
"""
