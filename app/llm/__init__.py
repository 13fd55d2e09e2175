"""Model clients: everything that answers a `ModelRequest`.

One responsibility: turn the engine's model port into calls of a provider, and a provider's stream, faults and
prices back into the engine's events, errors and counters. Policies (retry, timeouts, prices) are model
clients that wrap one.
May import `app.engine` and `app.telemetry`, and nothing else of `app`.
"""
