"""The one error of the embedded Postgres."""


class EmbeddedPostgresError(RuntimeError):
    """The embedded Postgres cannot be used. The text says why, with the end of the server's log if any."""
