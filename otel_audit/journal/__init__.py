"""Lines, segments, streams, locks, cursor, recovery: what is on disk, and who may touch it."""
