"""The directory's own log: which streams were opened, how far they came, how they ended, and what was removed.

Its lines, their chain and their reader are those of a stream. It has rules of its own for who may write them, and when
they count. The life of one entry, in reading order:

1. `registrar`: report that a stream was opened, how far it has come, and that it has ended. `adoption` does so for a
   process that is gone.
2. `ledger`: what a process holds of the ledger. It takes a `turn`, which finds out by `standing` where the ledger ends
   and whether it may be continued, makes a `draft` of the lines, and writes them.
3. `epochs`: the keys that sign. `identity` is the key that outsiders know.
4. `entries`: read the entries, and the signed notes that hold the length of the ledger and the root of its tree.
   `files` names the files, distinguishes ledgers that followed each other in a directory, and has the two small files
   that are written in place: the slots and the reserve for a full disk.
5. `removals`: what was removed, and how far each stream is signed, for retention and for the counts.
6. `shipping`: let one process export the ledger, up to its last durable note.

`former` is the unsigned `ledger.jsonl` that earlier versions wrote.
"""
