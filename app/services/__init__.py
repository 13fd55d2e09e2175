"""Use cases: what a caller may ask for, whoever asks. The API and the console call these and nothing below them.

May import `app.db`, `app.llm`, `app.tools`, `app.event_bus` and `app.engine`. Knows nothing of HTTP.
"""
