"""Send batches over OTLP/HTTP and OTLP/gRPC, each as one request that has one outcome."""
