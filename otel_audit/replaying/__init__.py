"""Send again what was recorded before, or elsewhere, and wait for the endpoint.

`source` finds out what a path holds and reads it as parcels. `sending` gives each parcel to the endpoint, halves it
when it is refused, and waits while the endpoint is away. `replay` counts, and keeps how far it came in a file.
`quarantine` does the same for the quarantined lines of a journal.
"""
