"""A journal line as an OpenTelemetry LogRecord, and back: attributes, facts, mapping, encoding."""
