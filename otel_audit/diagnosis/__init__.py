"""Find out whether events can be recorded and delivered, as a process is configured and where it runs.

`otel-audit doctor` asks, in this order: `configuration` (do the settings say who records, and where events go),
`directory` (can a journal be written there, and is the one that is there whole) and `probe` (does the endpoint accept
an event). Each answer is a `Finding` of `findings`, with a remedy where there is something to do. Import from the
modules themselves: `status` needs one word of `directory`, and not the exporters that `probe` loads.
"""
