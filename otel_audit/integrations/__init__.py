"""Record events without calls of your own: adapters for frameworks, servers and logging.

The life of one event from a framework, in reading order:

1. `auto`: the entry points of `opentelemetry-instrument` install the integrations below. `lease` shares one logger
   among all of them.
2. `asgi`, `mcp`, `fastapi`, `feast`, `stdlib_logging` and `otel_logs`: observe a request, a call, a decision or a log
   record of one framework.
3. `principals` and `client_address`: find out who acted, and from where.
4. `parent`: connect the event to the one under way, which code can fill in.

An integration completes an event and calls the logger. It never writes by itself.
"""
