"""Keys of requests that create, apart from runs: those keep their keys inside their own create statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.create import IDEMPOTENCY_TTL
from app.db.models import IdempotencyKey as KeyRow
from app.engine.records import IdempotencyKey
from app.engine.store_errors import IdempotencyMismatch

_TTL = text(f"interval '{IDEMPOTENCY_TTL}'")


async def take(session: AsyncSession, tenant_id: str, key: IdempotencyKey) -> dict[str, Any] | None:
    """Take a key for this transaction; concurrent requests with the same key wait here for its end.

    Returns:
        What an earlier request made under the key; None if the key is new, or has expired, and is now ours.

    Raises:
        IdempotencyMismatch: the key was used with another request.
    """
    now = func.clock_timestamp()
    taking = insert(KeyRow).values(tenant_id=tenant_id, key=key.key, request_hash=key.request_hash, resource={})
    taken = await session.execute(
        taking.on_conflict_do_update(
            index_elements=[KeyRow.tenant_id, KeyRow.key],
            set_={
                "request_hash": taking.excluded.request_hash,
                "resource": taking.excluded.resource,
                "created_at": now,
            },
            where=KeyRow.created_at < now - _TTL,
        ).returning(KeyRow.key)
    )
    if taken.first() is not None:
        return None
    found = await session.execute(
        select(KeyRow.request_hash, KeyRow.resource).where(KeyRow.tenant_id == tenant_id, KeyRow.key == key.key)
    )
    request_hash, resource = found.one()
    if request_hash != key.request_hash:
        raise IdempotencyMismatch(f"the idempotency key {key.key!r} was used with another request")
    return resource


async def remember(session: AsyncSession, tenant_id: str, key: IdempotencyKey, resource: dict[str, Any]) -> None:
    """Note what was made under a key that `take` gave us."""
    await session.execute(
        update(KeyRow).where(KeyRow.tenant_id == tenant_id, KeyRow.key == key.key).values(resource=resource)
    )
