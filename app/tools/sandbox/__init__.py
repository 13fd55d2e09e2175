"""What a tool call may do to this machine, as the operator declares it, and the tools that are bounded by it.

Imports nothing of `app` but `app.engine`, `app.telemetry` and the rest of `app.tools`. `supervisor.py` is a program of
its own: it runs without the rest of `app`.
"""
