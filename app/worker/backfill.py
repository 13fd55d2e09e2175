"""Embeds the memories that have no embedding of the model that is set, a few at a time, while no other replica does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from app.db import chores, memories
from app.db.chores import ChoreName
from app.db.database import Database
from app.engine.errors import ModelError, ModelErrorCode
from app.engine.memories import Embedder, Unembedded, Vector
from app.engine.store_errors import StoreError, reason_of
from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring

EVERY_S = 30.0
FIRST_S = 2.0
PAUSE_S = 0.05
# A replica that dies leaves the chore to the next one after this; longer than the tries for a batch take.
HOLD_S = 120.0
BATCH = 32
# What every model embeds, if it embeds anything.
PROBE = "memory"

_OF_TEXTS = (ModelErrorCode.INVALID_REQUEST, ModelErrorCode.CONTEXT_OVERFLOW)

log = get_logger(__name__)


class Backfill:
    """Looks about twice a minute for memories that were put while there was no embedding to be had, or under another
    model, and goes on while there are more and the model answers.

    A text that the model refuses, though it answers, is noted as refused and not tried again.

    Args:
        replica: the incarnation that the chore is taken for.
    """

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        replica: str,
        *,
        every_s: float = EVERY_S,
        first_s: float = FIRST_S,
        hold_s: float = HOLD_S,
    ) -> None:
        self._database = database
        self._embedder = embedder
        self._replica = replica
        self._every_s = every_s
        self._first_s = first_s
        self._hold_s = hold_s
        self._failures = Recurring(log, "background_work_failed")

    def start(self) -> asyncio.Task[None]:
        """Begin; cancelling the task ends it."""
        return asyncio.create_task(self._run(), name="embed-memories")

    async def fill(self) -> int:
        """Embed what there is to embed, unless another replica does; how many memories it dealt with.

        What stands in the way is left for the next time, with a line in the log.
        """
        done = 0
        try:
            while batch := await self._next_batch():
                vectors = await self._embedded(batch)
                if not await self._keep(batch, vectors):
                    log.warning("chore_taken_over", chore=ChoreName.EMBEDDINGS.value)
                    break
                done += len(batch)
                await asyncio.sleep(PAUSE_S)
        except ModelError as error:
            self._failures.failed(error.code.value, work="embed-memories", error=error.message)
        except StoreError as error:
            self._failures.failed(str(error), work="embed-memories", error=reason_of(error))
        except Exception:
            log.exception("background_work_failed", work="embed-memories")
        if done:
            log.info("memories_embedded", memories=done, model=self._embedder.model)
        return done

    async def _run(self) -> None:
        await asyncio.sleep(self._first_s * random.uniform(0.5, 1.5))
        while True:
            await self.fill()
            await asyncio.sleep(self._every_s * random.uniform(0.8, 1.2))

    async def _next_batch(self) -> Sequence[Unembedded]:
        async with self._database.connection() as connection:
            held = await chores.take(connection, ChoreName.EMBEDDINGS, self._replica, self._hold_s)
            return () if held is None else await memories.unembedded(connection, self._embedder.model, BATCH)

    async def _keep(self, batch: Sequence[Unembedded], vectors: Sequence[Vector | None]) -> bool:
        """False if another replica has taken the chore: nothing was written."""
        async with self._database.transaction() as connection:
            if not await chores.hold(connection, ChoreName.EMBEDDINGS, self._replica, self._hold_s, None):
                return False
            for memory, vector in zip(batch, vectors, strict=True):
                await memories.keep_embedding(connection, memory, self._embedder.model, vector)
        return True

    async def _embedded(self, batch: Sequence[Unembedded]) -> Sequence[Vector | None]:
        """The embeddings of a batch; None for a text that is refused. Raises: ModelError, the model does not answer."""
        told = [memory.text for memory in batch if memory.text.strip()]
        vectors = iter(await self._vectors(told) if told else ())
        return [next(vectors) if memory.text.strip() else None for memory in batch]

    async def _vectors(self, texts: Sequence[str]) -> Sequence[Vector | None]:
        try:
            return await self._embedder.embed(texts)
        except ModelError as error:
            if error.code not in _OF_TEXTS:
                raise
        found: list[Vector | None] = []
        for text in texts:
            found += await self._alone(text)
        return found

    async def _alone(self, text: str) -> Sequence[Vector | None]:
        try:
            return await self._embedder.embed([text])
        except ModelError as error:
            if error.code not in _OF_TEXTS:
                raise
            await self._embedder.embed([PROBE])  # a model that refuses everything has not refused this text
            log.warning("embedding_refused", model=self._embedder.model, error=error.message)
            return [None]
