"""From a line of the journal to an OTel log record, or to an event of OCSF.

In reading order: `attributes` is the table of every key, and of the standard that names it. `facts` works out what an
event does not say in so many words, such as its outcome in the words of OTel. `mapping` puts fields and facts under the
keys of the table, as many as a store accepts. `encoding` makes the OTLP request of many lines: of a usual one by slices
of it, of any other by its JSON, and of both with the pieces of protobuf that `wire` knows. `sdk` makes
the same records for exporters that are written against the SDK. `otlp_json` reads and writes records as JSON, also
those that others made through the OTel logs API. `ocsf` makes another record of a line: an event of OCSF, for a SIEM.
"""
