"""Side-by-side measurements of audit logging: `python -m benchmarks`."""
