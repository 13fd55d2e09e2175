"""What is kept in Postgres and how it gets there: sessions, models, queries, migrations, the embedded server.

May import: `app.engine`, `app.telemetry`. Queries never commit; the caller's boundary does.
"""
