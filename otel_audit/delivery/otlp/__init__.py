"""Send batches over OTLP/HTTP and OTLP/gRPC, each as one request that has one outcome.

The life of one request, in reading order:

1. `exporter`: build the request from the lines of a batch, and pass it to the transport of the settings.
2. `http`, over the connections of `http_session`, or `grpc`: send it, and receive the answer.
3. `http_answers` or `grpc_answers`: decide what the answer means for the records.
"""
