"""Lines on disk, who may write and send them, and what became of them.

The life of one line, in the order of the modules that it passes:

* `journal` takes an event from the caller, and `writer` and `room` see to it that there is a stream, and
  space for it.
* `stream` numbers the line, chains it to the one before and writes it to the open `segment`; `commit` and `background`
  make it durable. `files` names what lies in the directory, `locks` says who may touch it.
* `reader` reads it back, by blocks of `line_file`, as a `line`.
* `shipment` is the right to deliver it. `cursor` keeps how far each exporter has come, `quarantine` which lines it
  refused.
* `counts` has the words for what became of it, and `census` counts a directory. When every exporter has it,
  `retention` and `removal` remove its segment, and `ledger` tells of that for good.
"""
