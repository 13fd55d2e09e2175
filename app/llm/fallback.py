"""Asking another model where one cannot answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import WarningCode
from app.engine.model import ModelClient, ModelEvent, ModelNotice, ModelRequest, StreamRestarted
from app.llm.output import OUTPUT

# Besides what could help if it were tried again: here it is this model, or its key, that is the reason.
_ANOTHER_MODEL_HELPS = frozenset({ModelErrorCode.AUTHENTICATION, ModelErrorCode.MODEL_NOT_FOUND})


class FallbackClient:
    """A `ModelClient` that asks `request.model` of another one, and then `request.fallback_models` in order.

    The next one is asked after an error that is `retryable` (the inner client has made its tries), a key that is not
    accepted, and a model that is not there; a request that is wrong, or too long, is the caller's to change. Each model
    is asked once. The requests that go inside carry the models that are still left, and the inner client asks none of
    them by itself. Output of a model that failed is made void, what it cost is passed on, and a notice says which model
    is asked instead.
    """

    def __init__(self, inner: ModelClient) -> None:
        self._inner = inner

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; where several models failed, the last one's error names all of them."""
        return self._chain(request) if request.fallback_models else self._inner.stream(request)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()

    async def _chain(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        models = tuple(dict.fromkeys((request.model, *request.fallback_models)))
        for place, model in enumerate(models):
            left = models[place + 1 :]
            has_output = False
            try:
                asked = replace(request, model=model, fallback_models=left)
                async with aclosing(self._inner.stream(asked)) as events:
                    async for event in events:
                        if isinstance(event, OUTPUT):
                            has_output = True
                        elif isinstance(event, StreamRestarted):
                            has_output = False
                        yield event
                return
            except ModelError as error:
                if not left or not (error.retryable or error.code in _ANOTHER_MODEL_HELPS):
                    raise _naming(error, models[: place + 1]) from error
                failure = error
            if failure.spent is not None:
                yield failure.spent
            if has_output:
                yield StreamRestarted(failure.message)
            yield _notice(model, left[0], failure)


def _notice(failed: str, next_model: str, error: ModelError) -> ModelNotice:
    return ModelNotice(
        WarningCode.FALLBACK_USED,
        f"{failed} cannot answer, so {next_model} is asked: {error.message}",
        {"from_model": failed, "to_model": next_model, "reason": error.code.value},
    )


def _naming(error: ModelError, tried: Sequence[str]) -> ModelError:
    """The error of the last model, with all models in its message where there were several."""
    if len(tried) == 1:
        return error
    message = f"{error.message} (asked in order: {', '.join(tried)})"
    named = ModelError(error.code, message, status=error.status, retry_after_s=error.retry_after_s)
    named.spent = error.spent
    return named
