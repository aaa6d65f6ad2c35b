"""The ledger of a directory."""
