"""Keys of requests that create, apart from runs: those keep their keys inside their own create statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Update, func, literal_column, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.db.keys import IDEMPOTENCY_TTL, STANDS
from app.db.models import IdempotencyKey as KeyRow
from app.engine.records import IdempotencyKey
from app.engine.store_errors import IdempotencyMismatch

_TTL = text(f"interval '{IDEMPOTENCY_TTL}'")
_KNOWN = aliased(KeyRow, name="k")


async def take(session: AsyncSession, tenant_id: str, key: IdempotencyKey) -> dict[str, Any] | None:
    """Take a key for this transaction, before it locks anything else; requests with the same key wait here for its end.

    Returns:
        What an earlier request made under the key; None if the key is new, or has expired, and is now ours.

    Raises:
        IdempotencyMismatch: the key was used with another request.
    """
    now = func.clock_timestamp()
    taking = insert(KeyRow).values(tenant_id=tenant_id, key=key.key, request_hash=key.request_hash, resource={})
    fresh: dict[str, Any] = {"request_hash": key.request_hash, "resource": {}, "created_at": now}
    taken = await session.execute(
        taking.on_conflict_do_update(
            index_elements=[KeyRow.tenant_id, KeyRow.key], set_=fresh, where=KeyRow.created_at < now - _TTL
        ).returning(KeyRow.key)
    )
    if taken.first() is not None:
        return None
    found = await session.execute(
        select(_KNOWN.request_hash, _KNOWN.resource, literal_column(f"({STANDS})", Boolean)).where(
            _KNOWN.tenant_id == tenant_id, _KNOWN.key == key.key
        )
    )
    request_hash, resource, stands = found.one()
    if not stands:
        await session.execute(_of(tenant_id, key).values(fresh))
        return None
    if request_hash != key.request_hash:
        raise IdempotencyMismatch(f"the idempotency key {key.key!r} was used with another request")
    return resource


async def remember(session: AsyncSession, tenant_id: str, key: IdempotencyKey, resource: dict[str, Any]) -> None:
    """Note what was made under a key that `take` gave us."""
    await session.execute(_of(tenant_id, key).values(resource=resource))


def _of(tenant_id: str, key: IdempotencyKey) -> Update:
    return update(KeyRow).where(KeyRow.tenant_id == tenant_id, KeyRow.key == key.key)
