"""The compose stack, as far as it can be checked without an engine and images."""
