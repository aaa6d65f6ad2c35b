"""Check whether a trail is whole, in a directory or in a store, against the signed ledger.

The life of one verification, in reading order:

1. `verify`: the order of all checks of a directory. `archive` is the same for a store, and `judging` the common part.
2. `pins`: the keys and notes that the verifier supplies, so that something outside the host vouches for the trail, and
   the lines that each of them vouches for.
3. `directory`: read a journal.
4. `ledger`: check the ledger itself. `claims` collects its entries about each stream, and `own_removal` those about its
   own removed lines.
5. `chain`: check the lines of one stream. `anchors` compares them with the signed hashes and roots.
6. `crosscheck`: compare a directory and a store.
7. `findings`: what can be found, and the verdict that follows.

In addition, `proof` is the file that proves one event to somebody who sees no other, `proving` makes it, and
`trail_lines` reads the lines for it.
"""
