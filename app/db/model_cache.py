"""Answers of models, kept for all replicas."""

from __future__ import annotations

from app.db.database import Connection, Database


class PostgresModelCache:
    """Keeps answers in the table `model_cache`; times are the database's. Its errors are those of `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, key: bytes, max_age_s: float) -> bytes | None:
        """What was put there no longer ago than that, and is to be kept still."""
        async with self._database.connection() as connection:
            return await connection.fetchval(
                """SELECT answer FROM model_cache
                   WHERE key = $1 AND expires_at > clock_timestamp()
                     AND stored_at > clock_timestamp() - make_interval(secs => $2)""",
                key,
                max_age_s,
            )

    async def put(self, key: bytes, answer: bytes, ttl_s: float) -> None:
        """Keep an answer for so many seconds, in place of an earlier one."""
        async with self._database.connection() as connection:
            await connection.execute(
                """INSERT INTO model_cache (key, answer, expires_at)
                   VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
                   ON CONFLICT (key) DO UPDATE SET answer = EXCLUDED.answer, stored_at = EXCLUDED.stored_at,
                                                   expires_at = EXCLUDED.expires_at""",
                key,
                answer,
                ttl_s,
            )


async def forget_expired(connection: Connection, limit: int) -> int:
    """Remove answers whose time is up, at most `limit` of them; how many they were."""
    done = await connection.execute(
        """DELETE FROM model_cache WHERE key IN (
               SELECT key FROM model_cache WHERE expires_at <= clock_timestamp()
               ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)""",
        limit,
    )
    return int(done.rpartition(" ")[2])
