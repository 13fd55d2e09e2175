"""A replica from its start to its stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from app.db.database import Database
from app.db.migrate import current, missing
from app.db.pools import Pools, PoolSizes
from app.engine.store_errors import StoreError, StoreUnavailable
from app.replica.configured import load_tools, model_config
from app.replica.replica import Replica
from app.services.errors import ServiceError
from app.services.policy_modules import load_policy_modules
from app.settings import Settings
from app.telemetry.logs import get_logger

if TYPE_CHECKING:
    from app.telemetry.process import Telemetry

MIGRATIONS_LOOK_S = 1.0

log = get_logger(__name__)


@asynccontextmanager
async def running_replica(settings: Settings, telemetry: Telemetry | None = None) -> AsyncGenerator[Replica]:
    """A replica at work; one whose database is not migrated yet waits for that and says so at `/readyz`.

    Args:
        telemetry: where traces and metrics are exported to; None for nowhere.
    """
    config = model_config(settings)
    tools = load_tools(settings)
    policy = load_policy_modules(settings.policy_modules)
    sizes = PoolSizes(
        execution=settings.database_execution_connections,
        api=settings.database_api_connections,
        streams=settings.database_stream_connections,
    )
    pools = await Pools.open(settings.database_url, sizes, prepared=settings.database_prepared)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pools.close)
        replica = Replica(settings, pools, tools, policy, config, telemetry)
        if telemetry is not None:
            stack.push_async_callback(telemetry.flush, also=telemetry.push(replica.metrics))
        stack.push_async_callback(replica.stop)
        if await _migrations_missing(pools.readiness) is None:
            await replica.start()
        else:
            waiting = asyncio.create_task(_start_when_migrated(replica, pools.readiness), name="wait-for-migrations")
            stack.callback(waiting.cancel)
        yield replica


async def _start_when_migrated(replica: Replica, database: Database) -> None:
    log.warning("migrations_missing", hint="run `agent-runner migrate`; this replica starts to work after it")
    while await _still_missing(database):  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(MIGRATIONS_LOOK_S)
    if replica.draining:
        return
    try:
        await replica.start()
    except (StoreError, ServiceError) as error:
        log.error("cannot_start", reason=str(error), hint="restart this replica")


async def _still_missing(database: Database) -> bool:
    try:
        return await _migrations_missing(database) is not None
    except StoreUnavailable:
        return True  # it will come back, and then be asked again


async def _migrations_missing(database: Database) -> str | None:
    async with database.connection() as connection:
        return missing(await current(connection))
