"""Providers without a client of their own here, through litellm; keys and addresses by litellm's variables.

https://docs.litellm.ai/docs/providers
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelEvent, ModelRequest, ModelResponse
from app.llm.chat_messages import chat_message, chat_tool
from app.llm.completion import Completion
from app.llm.litellm_errors import error_of_litellm
from app.llm.litellm_module import LiteLLM, LiteLLMChunk, litellm_module
from app.llm.provider_errors import Clock, utc_now


class LiteLLMClient:
    """A `ModelClient` for `provider/model` as litellm names them.

    litellm hides two things that the native client sees: it ends a stream that stopped without a
    finish_reason as if it were whole, and it counts tokens itself, unsaid, where the provider does not.

    Args:
        now: the clock that a Retry-After date is held against; timezone-aware.
    """

    def __init__(self, *, now: Clock = utc_now) -> None:
        self._now = now
        self._litellm: LiteLLM | None = None

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        if self._litellm is None:
            self._litellm = await litellm_module()
        provider, _, model = request.model.partition("/")
        completion = Completion(request, provider=provider, model=model)
        chunks: AsyncIterator[LiteLLMChunk] | None = None
        try:
            chunks = await self._open(self._litellm, request, provider)
            while (chunk := await self._next(chunks, provider)) is not None:
                for event in completion.take(chunk):
                    yield event
            yield _not_nothing(completion.response())
        finally:
            aclose = getattr(chunks, "aclose", None)
            if aclose is not None:
                await aclose()

    async def aclose(self) -> None:
        """See `ModelClient.aclose`; closes all of litellm's connections, which it keeps for the process."""
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()

    async def _open(self, litellm: LiteLLM, request: ModelRequest, provider: str) -> AsyncIterator[LiteLLMChunk]:
        arguments: dict[str, Any] = {
            "model": request.model,
            "messages": [chat_message(message) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "num_retries": 0,  # retrying is a client of its own
            "max_retries": 0,
            **request.settings,
        }
        if request.tools:
            arguments["tools"] = [chat_tool(tool) for tool in request.tools]
        try:
            answer = await litellm.acompletion(**arguments)
        except Exception as error:
            raise error_of_litellm(error, provider=provider, now=self._now) from error
        if isinstance(answer, AsyncIterator):
            return answer
        return _single(answer)

    async def _next(self, chunks: AsyncIterator[LiteLLMChunk], provider: str) -> dict[str, Any] | None:
        try:
            chunk = await anext(chunks, None)
        except Exception as error:
            raise error_of_litellm(error, provider=provider, now=self._now) from error
        return None if chunk is None else chunk.model_dump(exclude_none=True)


def _not_nothing(response: ModelResponse) -> ModelResponse:
    """Of a body in which it could read nothing at all, litellm makes an empty answer without usage."""
    if response.usage_estimated and not response.text and not response.tool_calls:
        raise ModelError(ModelErrorCode.INVALID_RESPONSE, f"{response.provider}: an answer with nothing in it")
    return response


async def _single(answer: LiteLLMChunk) -> AsyncIterator[LiteLLMChunk]:
    yield answer
