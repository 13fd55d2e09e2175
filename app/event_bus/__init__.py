"""Wake-ups: who reads a run hears that there is something to read. Lossy, and only ever an accelerator.

May import `app.engine` and `app.telemetry`. The truth is in the store: whatever is lost here is found there, a second
or two later.
"""
