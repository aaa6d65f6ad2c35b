"""The directory's own log: which streams were opened, how far they came, how they ended, and what was removed.

Its lines, their chain and their reader are those of a stream; who may write them, and when they count, are its own
rules. In reading order:

* `files` names the files of a directory's ledger, and tells apart the ledgers that followed each other there.
* `entries` reads it: the entries, and the signed notes that say how long the ledger is and what the root of its tree
  is.
* `former` is the unsigned `ledger.jsonl` that earlier versions wrote.
"""
