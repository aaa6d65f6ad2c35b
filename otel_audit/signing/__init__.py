"""Merkle trees, signed notes and Ed25519 keys, with which a stranger can check a trail.

The life of one signature, in reading order:

1. `tree`: hash the lines of a log into one root, and prove that a line is under it.
2. `note`: write the root into a text that carries its signatures to whoever checks them.
3. `keys`: sign the text, and verify it.

The formats are public, so that tools written by others can check ours: RFC 6962 for the tree, C2SP signed-note and
tlog-checkpoint for the text, and RFC 8032 for the signatures.
"""
