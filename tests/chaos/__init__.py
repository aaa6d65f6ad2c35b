"""Chaos: writers, shippers and a real collector, killed, hung and without disk, against a ledger of receipts.

`python -m tests.chaos` runs it for this package and for the stock OTel SDK, side by side.
"""
