"""Find out whether a process, as it is configured and where it runs, can record and deliver events.

The checks of `otel-audit doctor`, in reading order:

1. `configuration`: do the settings name the service, and say where events go?
2. `directory`: can a journal be kept in the directory, and is the present one complete?
3. `ledger`: can the signed ledger of the directory go on?
4. `probe`: does the endpoint accept a real event?

Each returns a `Finding` of `findings`, with a remedy if there is something to do. Import from the modules themselves,
since `status` and `config` need a part of the first ones and not the exporters that `probe` loads.
"""
