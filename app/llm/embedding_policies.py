"""How hard to try for an embedding, and when not to try at all."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.memories import Embedder, Vector

_ATTEMPTS = 3
_BASE_S = 0.2
_TOTAL_S = 8.0
_REST_S = 10.0

# What is wrong with the texts, and not with the server.
OF_TEXTS = frozenset({ModelErrorCode.INVALID_REQUEST, ModelErrorCode.CONTEXT_OVERFLOW})


class RetryingEmbedder:
    """An `Embedder` that asks another one up to three times, and for no longer than `total_s` seconds in all.

    Only errors that are `retryable` are tried again. Somebody waits for the answer: a server that asks for more time
    than is left is not waited for.

    Args:
        sleep: waits so many seconds.
        uniform: a random number from 0 up to 1.
    """

    def __init__(
        self,
        inner: Embedder,
        *,
        total_s: float = _TOTAL_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._total_s = total_s
        self._sleep = sleep
        self._uniform = uniform
        self._clock = clock

    @property
    def model(self) -> str:
        return self._inner.model

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """See `Embedder.embed`."""
        until = self._clock() + self._total_s
        attempt = 1
        while True:
            limit = asyncio.timeout(until - self._clock())
            try:
                async with limit:
                    return await self._inner.embed(texts)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise ModelError(ModelErrorCode.TIMEOUT, f"embeddings: no answer in {self._total_s:g} s") from None
            except ModelError as error:
                wait_s = max(error.retry_after_s or 0.0, self._uniform() * _BASE_S * 2.0**attempt)
                if not error.retryable or attempt == _ATTEMPTS or self._clock() + wait_s >= until:
                    raise
            await self._sleep(wait_s)
            attempt += 1

    async def aclose(self) -> None:
        """See `Embedder.aclose`."""
        await self._inner.aclose()


class RestingEmbedder:
    """An `Embedder` that, after another one has failed, answers with that failure for `rest_s` seconds.

    So that requests do not each wait for a server that is away. Failures that are about the texts do not count.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self, inner: Embedder, *, rest_s: float = _REST_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner = inner
        self._rest_s = rest_s
        self._clock = clock
        self._failure: ModelError | None = None
        self._until = 0.0

    @property
    def model(self) -> str:
        return self._inner.model

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """See `Embedder.embed`."""
        if self._failure is not None and self._clock() < self._until:
            raise ModelError(self._failure.code, self._failure.message)
        try:
            vectors = await self._inner.embed(texts)
        except ModelError as error:
            if error.code not in OF_TEXTS:
                self._failure = error
                self._until = self._clock() + self._rest_s
            raise
        self._failure = None
        return vectors

    async def aclose(self) -> None:
        """See `Embedder.aclose`."""
        await self._inner.aclose()
