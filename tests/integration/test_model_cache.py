"""Answers of models in Postgres."""

from __future__ import annotations

from uuid import uuid4

from app.db.database import Database
from app.db.model_cache import PostgresModelCache, forget_expired
from app.db.retention import Removed
from app.telemetry.metrics import Metrics
from app.worker.sweeper import Retention, Sweeper


async def _rows(database: Database) -> int:
    async with database.connection() as connection:
        return await connection.fetchval("SELECT count(*) FROM model_cache")


async def _age(database: Database, seconds: float) -> None:
    """Let so much time pass for all that is there."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE model_cache SET stored_at = stored_at - make_interval(secs => $1), "
            "expires_at = expires_at - make_interval(secs => $1)",
            seconds,
        )


async def test_an_answer_is_there_for_all_replicas_for_its_time(database: Database) -> None:
    one, two = PostgresModelCache(database), PostgresModelCache(database)
    await one.put(b"key", b"\0answer", 100.0)
    assert await two.get(b"key", 100.0) == b"\0answer"
    assert await two.get(b"other", 100.0) is None
    await _age(database, 50)
    assert await two.get(b"key", 100.0) == b"\0answer"
    assert await two.get(b"key", 40.0) is None  # whoever asks does not want it so old
    await _age(database, 60)
    assert await two.get(b"key", 1000.0) is None


async def test_a_later_answer_takes_the_place_of_an_earlier_one_with_a_time_of_its_own(database: Database) -> None:
    cache = PostgresModelCache(database)
    await cache.put(b"key", b"old", 100.0)
    await _age(database, 90)
    await cache.put(b"key", b"new", 100.0)
    await _age(database, 50)
    assert await cache.get(b"key", 60.0) == b"new"
    assert await _rows(database) == 1


async def test_the_sweeper_removes_what_has_expired_and_nothing_else(database: Database) -> None:
    cache = PostgresModelCache(database)
    for number in range(3):
        await cache.put(b"short %d" % number, b"x", 10.0)
    await cache.put(b"long", b"x", 1000.0)
    await _age(database, 20)
    removed = await Sweeper(database, str(uuid4()), Retention(), Metrics()).sweep()
    assert removed == {Removed.CACHED_ANSWERS: 3}
    assert await cache.get(b"long", 1000.0) == b"x"


async def test_what_has_expired_goes_in_batches(database: Database) -> None:
    cache = PostgresModelCache(database)
    for number in range(3):
        await cache.put(b"%d" % number, b"x", 0.001)
    await _age(database, 1)
    async with database.connection() as connection:
        assert [await forget_expired(connection, 2) for _ in range(3)] == [2, 1, 0]
