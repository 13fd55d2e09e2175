"""Idempotency keys of requests that create runs.

Lock order everywhere: key, then thread, then run. A request that has a key takes it before anything else, so that its
duplicates wait for it there, and find what it made before they have touched a thread.
"""

from __future__ import annotations

import orjson

from app.db.database import Connection
from app.db.rows import json_text
from app.engine.records import IdempotencyKey
from app.engine.store_errors import IdempotencyMismatch

IDEMPOTENCY_TTL = "24 hours"

# Whether all that key `k` made is still there. A key whose run, thread or message was deleted counts as expired. That
# is asked when the key comes again, so that deleting has no keys to look for.
STANDS = """CASE
    WHEN k.resource->'run_ids' IS NOT NULL THEN NOT EXISTS (
        SELECT 1 FROM json_array_elements_text(k.resource->'run_ids') AS made(id)
        WHERE NOT EXISTS (SELECT 1 FROM runs WHERE run_id = made.id::uuid))
    WHEN k.resource->'seq' IS NOT NULL THEN EXISTS (
        SELECT 1 FROM messages
        WHERE thread_key = (k.resource->>'thread_key')::uuid AND seq = (k.resource->>'seq')::bigint)
    ELSE EXISTS (SELECT 1 FROM threads WHERE tenant_id = k.tenant_id AND thread_id = k.resource->>'thread_id')
    END"""

_TAKE = f"""
INSERT INTO idempotency_keys AS k (tenant_id, key, request_hash, resource) VALUES ($1, $2, $3, $4::json)
ON CONFLICT (tenant_id, key) DO UPDATE
SET request_hash = EXCLUDED.request_hash, resource = EXCLUDED.resource, created_at = clock_timestamp()
WHERE k.created_at < clock_timestamp() - interval '{IDEMPOTENCY_TTL}'
RETURNING 1"""

_REPLACE = """
UPDATE idempotency_keys SET request_hash = $3, resource = $4::json, created_at = clock_timestamp()
WHERE tenant_id = $1 AND key = $2"""


async def take(
    connection: Connection, tenant_id: str, idempotency: IdempotencyKey, run_ids: list[str]
) -> list[str] | None:
    """Take a key for these runs; concurrent requests with the same key wait here for the transaction's end.

    Returns:
        the runs of an earlier request with this key; None if the key is new or has expired, and is now ours.

    Raises:
        IdempotencyMismatch: the key was used with another request.
    """
    ours = (tenant_id, idempotency.key, idempotency.request_hash, json_text({"run_ids": run_ids}))
    if await connection.fetchval(_TAKE, *ours):
        return None
    # The row is locked though it was not changed. What it points to is read in a statement of its own: it sees what was
    # committed while this request waited.
    row = await connection.fetchrow(
        f"SELECT request_hash, resource, {STANDS} AS stands FROM idempotency_keys k WHERE tenant_id = $1 AND key = $2",
        *ours[:2],
    )
    assert row is not None, "a locked key is gone"
    if not row["stands"]:
        await connection.execute(_REPLACE, *ours)
        return None
    resource = orjson.loads(row["resource"])
    if row["request_hash"] != idempotency.request_hash or "run_ids" not in resource:
        raise IdempotencyMismatch("this Idempotency-Key was used with another request; send a new key")
    return resource["run_ids"]
