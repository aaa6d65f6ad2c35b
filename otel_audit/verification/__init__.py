"""Check whether a trail is whole, in a directory or in a store, against the signed ledger.

The life of one verification, in reading order:

1. `verify`: the order of all checks of a directory. `archive` is the same for a store, and `judging` the common part.
2. `pins`: what the verifier brings along, so that somebody outside the host vouches for the trail.
3. `directory`: read a journal. `former` reads the unsigned ledger of earlier versions.
4. `ledger`: check the ledger itself. `claims` is what it says of each stream, and `own_removal` of its own removed
   lines.
5. `chain`: go along the lines of one stream. `anchors` compares them with the signed hashes and roots.
6. `crosscheck`: compare a directory and a store.
7. `findings`: what can be found, and the verdict that follows.

Besides, `proof` is the file that proves one event to somebody who sees no other, `proving` makes it, and `trail_lines`
reads the lines that it is made of.
"""
