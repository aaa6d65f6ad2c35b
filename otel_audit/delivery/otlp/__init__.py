"""OTLP over HTTP and gRPC: one batch, one request, one outcome."""
