"""Tests of `otel_audit.verification`, and of the verifiers for strangers."""
