"""Is the trail whole? Check what lies in a directory or in a store against what was signed of it.

In reading order: `findings` says what can be found and what verdict follows; `chain` goes along the lines of one
stream, and `anchors` holds them against the signed hashes and roots; `claims` is what the ledger says of each stream,
and `ledger` checks the ledger itself; `directory` reads a journal into them, `former` the unsigned ledger of earlier
versions; `verify` has the order of it all for a directory, `archive` for a store, and `judging` what both judge alike;
`crosscheck` holds a directory and a store against each other. Beside them, `proof` is the file that proves one event to
somebody who sees no other, and `proving` makes it.
"""
