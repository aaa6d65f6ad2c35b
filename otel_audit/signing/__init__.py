"""Merkle trees, signed notes and Ed25519 keys: what lets a stranger check a trail.

In reading order: `tree` hashes the lines of a log into one root and proves that a line is under it; `keys` signs and
verifies; `note` is the text that carries a root and its signatures to whoever wants to check them. The formats are
public ones, so that tools written by others check ours: RFC 6962 for the tree, C2SP signed-note and tlog-checkpoint for
the text, RFC 8032 for the signatures.
"""
