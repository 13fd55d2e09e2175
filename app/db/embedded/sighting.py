"""What there is of an embedded Postgres, seen from outside: for whoever must not start, share or stop it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from app.db.embedded.cluster import url_of
from app.db.embedded.errors import EmbeddedPostgresError
from app.db.embedded.postmaster import Postmaster


class Absence(Enum):
    """Why no server can be used. `DIED`: none has stopped it, and its process is gone. `BUSY`: it starts, recovers or
    stops."""

    NEVER_MADE = "never_made"
    STOPPED = "stopped"
    DIED = "died"
    BUSY = "busy"


def running_url(data_dir: Path) -> str | Absence:
    """The URL of the embedded database of a data folder, if its server runs.

    Makes, starts and locks nothing; so the server may be stopped by its last user at any time.

    Raises:
        EmbeddedPostgresError: this account may not look into the folder.
    """
    cluster = data_dir.resolve() / "postgres"
    try:
        if not (cluster / "PG_VERSION").exists():
            return Absence.NEVER_MADE
        server = Postmaster.of(cluster)
    except OSError as error:
        raise EmbeddedPostgresError(f"The embedded Postgres in {data_dir} cannot be seen: {error}.") from error
    if server is None:
        return Absence.STOPPED
    if server.accepts_connections():
        return url_of(server)
    return Absence.BUSY if server.is_running() else Absence.DIED
