"""Turn a line of the journal into an OTel LogRecord, and back.

The life of one record, in reading order:

1. `encoding`: read a line, a usual one in the quickest way, and build an OTLP request of many lines.
2. `facts`: derive what the event does not say itself, such as the verdict on its outcome and its verb.
3. `mapping`: choose the attributes of the record. `attributes` is the table of their keys, with sources.
4. `wire`: put the request together from encoded pieces.
5. `otlp_json` and `sdk`: read and write log records of other programs, in OTLP's JSON and as objects of OTel's SDK.
6. `ocsf`: write an event in the format of OCSF instead.
"""
