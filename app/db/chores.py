"""Chores: work that one replica at a time does for all of them.

Who does one is said in its row, and until when nobody else may. That is compared and set by the database's clock: there
is no lock or session behind it that could outlive its replica, or that a pooler could lose.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.db.database import Connection


class ChoreName(StrEnum):
    """A chore for each row; all but the first two go through the runs that have ended, by their times."""

    HOUSEKEEPING = "housekeeping"
    EMBEDDINGS = "embeddings"
    RUNS = "runs"
    EVENTS = "events"
    CHECKPOINTS = "checkpoints"
    DELTAS = "deltas"


@dataclass(frozen=True, slots=True)
class Held:
    """A chore that this replica has now.

    Args:
        now: the database's time.
        done_up_to: everything before it is done; None if nothing is.
    """

    now: datetime
    done_up_to: datetime | None


async def take(connection: Connection, name: ChoreName, replica: str, hold_s: float) -> Held | None:
    """Take a chore, or hold it on; None if another replica has it.

    Args:
        hold_s: seconds for which no other replica can take it.
    """
    row = await connection.fetchrow(
        """INSERT INTO chores AS c (name, replica, held_until)
           VALUES ($1, $2::uuid, clock_timestamp() + make_interval(secs => $3))
           ON CONFLICT (name) DO UPDATE SET replica = EXCLUDED.replica,
               held_until = clock_timestamp() + make_interval(secs => $3)
           WHERE c.held_until <= clock_timestamp() OR c.replica = EXCLUDED.replica
           RETURNING clock_timestamp() AS now, done_up_to""",
        name.value,
        replica,
        hold_s,
    )
    return None if row is None else Held(row["now"], row["done_up_to"])


async def hold(
    connection: Connection, name: ChoreName, replica: str, hold_s: float, done_up_to: datetime | None
) -> bool:
    """Hold a chore on, and note how far it has come, in the transaction of the work that this tells of.

    Args:
        done_up_to: where that is further than what is noted; None if there is nothing to note.

    Returns:
        False if another replica has taken it: then that transaction is not to be committed.
    """
    done = await connection.execute(
        """UPDATE chores SET held_until = clock_timestamp() + make_interval(secs => $3),
                             done_up_to = GREATEST(done_up_to, $4::timestamptz)
           WHERE name = $1 AND replica = $2::uuid""",
        name.value,
        replica,
        hold_s,
        done_up_to,
    )
    return done.endswith(" 1")
