"""Keep lines on disk, control who may write and deliver them, and count what became of them.

The life of one line, in the order of the modules that it passes:

1. `journal`: take an event from the caller under one lock. `writer` opens a stream for it, and `room` checks the space.
2. `stream`: number the line, chain it to the one before, and write it to the open `segment`. `background` makes it
   durable. `files` names what lies in the directory, and `locks` says who may touch it.
3. `reader`: read it back, in blocks of a `line_file`, as a `line`.
4. `shipment`: hold the right to deliver the stream. `cursor` keeps the progress of each exporter, and `quarantine` the
   lines that it refused.
5. `ledger`: sign how far the stream came, over the tree of `stream_tree`.
6. `retention`: choose a segment that every exporter has, by the `ages`, and `removal` removes it. `pruning` does the
   same for the ledger.

`counts` has the terms for what became of a line, and `census` counts a directory.
"""
