"""Send again what was recorded before, or elsewhere, and wait for the endpoint.

The life of one run of `otel-audit replay`, in reading order:

1. `source`: find out what a path holds, and read it in portions. Each has a parcel of records, and a mark behind which
   a later run goes on.
2. `sending`: give each parcel to the endpoint, halve it when it is refused, and wait while the endpoint is away.
3. `replay`: count what was sent, and keep how far the run came. `QuarantineReplay` does this for the lines that a
   journal has in quarantine.
"""
