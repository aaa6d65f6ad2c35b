"""The directory's own log: which streams were opened, how far they came, how they ended, and what was removed.

Its lines, their chain and their reader are those of a stream; who may write them, and when they count, are its own
rules. In reading order:

* `files` names the files of a directory's ledger, and tells apart the ledgers that followed each other there.
* `entries` reads it: the entries, and the signed notes that say how long the ledger is and what the root of its tree
  is.
* `ledger` is what a process holds. It takes a `turn`, which finds out by `standing` where the ledger ends and whether
  it may be continued, makes a `draft` of the lines, and writes them.
* `epochs` keeps the keys that sign, in `slots` of a file; `identity` is the key that outsiders know; `reserve` is room
  for the entries that must be written on a full disk.
* `removals` says what was removed, and how far each stream is signed: what retention and the numbers go by.
* `shipping` lets one process export the ledger, up to its last durable note.
* `former` is the unsigned `ledger.jsonl` that earlier versions wrote.
"""
