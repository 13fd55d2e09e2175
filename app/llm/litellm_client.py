"""Providers without a client of their own here, through litellm; keys and addresses by litellm's variables.

https://docs.litellm.ai/docs/providers
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import WarningCode
from app.engine.model import ModelEvent, ModelNotice, ModelRequest
from app.llm.chat_messages import chat_message, chat_tools, response_format
from app.llm.completion import Completion
from app.llm.litellm_errors import error_of_litellm
from app.llm.litellm_module import LiteLLM, LiteLLMChunk, litellm_module, missing_variables
from app.llm.provider_errors import Clock, utc_now
from app.llm.structured_output import SchemaMode

_OLLAMA = "ollama_chat"
# litellm's `ollama` is Ollama's older interface, to which it says tools and roles in the text of one prompt; it advises
# against it (https://docs.litellm.ai/docs/providers/ollama).
_NAMES = {"ollama": _OLLAMA}


class LiteLLMClient:
    """A `ModelClient` for `provider/model` as litellm names them.

    Args:
        now: the clock that a Retry-After date is held against; timezone-aware.
    """

    def __init__(self, *, now: Clock = utc_now) -> None:
        self._now = now
        self._litellm: LiteLLM | None = None
        self._schemas = SchemaMode(self._has_native)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        litellm = await self._module()
        _keep_from_asking(litellm, _name_of(request.model))
        taken = _taken_settings(litellm, request)
        provider, _, model = request.model.partition("/")
        completion = Completion(request, provider=provider, model=model)
        chunks: AsyncIterator[LiteLLMChunk] | None = None
        try:
            chunks = await self._schemas.open(replace(request, settings=taken), self._send)
            while (chunk := await self._next(chunks, request.model)) is not None:
                for event in completion.take(chunk):
                    yield event
            if _ended_early(chunks):
                raise ModelError(
                    ModelErrorCode.INVALID_RESPONSE, f"{provider}: the answer ended without a finish_reason"
                )
            response = completion.response()
            for setting in request.settings.keys() - taken.keys():
                message = f"{request.model} was called without {setting}: litellm knows no such setting of it"
                yield ModelNotice(WarningCode.SETTING_IGNORED, message, {"model": request.model, "setting": setting})
            yield response
        finally:
            aclose = getattr(chunks, "aclose", None)
            if aclose is not None:
                await aclose()

    async def aclose(self) -> None:
        """See `ModelClient.aclose`; closes all of litellm's connections, which it keeps for the process."""
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()

    async def _module(self) -> LiteLLM:
        if self._litellm is None:
            self._litellm = await litellm_module()
        return self._litellm

    async def _send(self, request: ModelRequest, by_schema: bool) -> AsyncIterator[LiteLLMChunk]:
        litellm = await self._module()
        provider = request.model.partition("/")[0]
        arguments: dict[str, Any] = {
            "model": _name_of(request.model),
            "messages": [chat_message(message, provider) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "num_retries": 0,  # retrying is a client of its own
            "max_retries": 0,
            **request.settings,
        }
        if request.tools:
            arguments["tools"] = chat_tools(request.tools)
        if by_schema and request.response_schema is not None:
            arguments["response_format"] = response_format(request.response_schema)
        try:
            answer = await litellm.acompletion(**arguments)
        except Exception as error:
            raise self._error(error, request.model) from error
        if isinstance(answer, AsyncIterator):
            return answer
        return _single(answer)

    async def _next(self, chunks: AsyncIterator[LiteLLMChunk], model: str) -> dict[str, Any] | None:
        try:
            chunk = await anext(chunks, None)
        except Exception as error:
            raise self._error(error, model) from error
        return None if chunk is None else chunk.model_dump(exclude_none=True)

    def _error(self, error: Exception, model: str) -> ModelError:
        def missing() -> Sequence[str]:
            return () if self._litellm is None else missing_variables(self._litellm, _name_of(model))

        return error_of_litellm(error, provider=model.partition("/")[0], now=self._now, missing=missing)

    def _has_native(self, model: str, schema: Mapping[str, Any]) -> bool:
        return self._litellm is not None and self._litellm.supports_response_schema(model=_name_of(model))


def _name_of(model: str) -> str:
    """The name by which litellm knows a model."""
    provider, _, name = model.partition("/")
    return f"{_NAMES.get(provider, provider)}/{name}"


def _keep_from_asking(litellm: LiteLLM, name: str) -> None:
    """Tell litellm of a local model what it would ask Ollama, on the event loop and with everything waiting for it."""
    if name.startswith(_OLLAMA + "/") and name not in litellm.model_cost:
        litellm.model_cost[name] = {
            "litellm_provider": _OLLAMA,
            "mode": "chat",
            "input_cost_per_token": 0.0,
            "output_cost_per_token": 0.0,
            "supports_response_schema": True,
        }


def _taken_settings(litellm: LiteLLM, request: ModelRequest) -> dict[str, Any]:
    """The settings that the model's provider has by litellm's list; litellm refuses a call with any other."""
    known = litellm.get_supported_openai_params(model=_name_of(request.model)) if request.settings else None
    if known is None:
        return dict(request.settings)
    return {name: value for name, value in request.settings.items() if name in known}


def _ended_early(chunks: AsyncIterator[LiteLLMChunk]) -> bool:
    """Whether the provider never said why it stopped: litellm itself ends such an answer as if it were whole.

    Of Gemini's answers it does not tell: each piece of them counts as one with a reason.
    """
    said = getattr(chunks, "received_finish_reason", "") or getattr(chunks, "intermittent_finish_reason", "")
    return said is None


async def _single(answer: LiteLLMChunk) -> AsyncIterator[LiteLLMChunk]:
    yield answer
