"""The native client: OpenAI's chat completions over aiohttp, for OpenAI and for all servers that speak them.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelEvent, ModelRequest
from app.llm.chat_messages import ToolsJson, chat_request, chat_tools
from app.llm.completion import Completion
from app.llm.pricing import bundled_prices
from app.llm.provider_errors import Clock, utc_now
from app.llm.provider_http import END_GRACE_S, Exchange, ProviderHttp
from app.llm.structured_output import SchemaMode


class OpenAICompatibleClient:
    """A `ModelClient` for one chat-completions server. Always streams; has no timeouts of its own.

    Args:
        base_url: up to and including the version, such as `https://api.openai.com/v1`.
        api_key: sent as a bearer token; None for servers that want none.
        provider: the prefix of the model names that this client answers, and the provider in its responses.
        now: the clock that a Retry-After date is held against; timezone-aware.
        end_grace_s: see `ProviderHttp`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        provider: str = "openai",
        now: Clock = utc_now,
        end_grace_s: float = END_GRACE_S,
    ) -> None:
        self._http = ProviderHttp(
            base_url.rstrip("/") + "/chat/completions",
            provider=provider,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            secret=api_key,
            now=now,
            end_grace_s=end_grace_s,
        )
        self._api_key = api_key
        self._provider = provider
        self._tools = ToolsJson(chat_tools)
        self._for_openai = self._http.url.host == "api.openai.com"
        self._schemas = SchemaMode(self._has_native)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        if self._for_openai and self._api_key is None:
            raise ModelError(
                ModelErrorCode.AUTHENTICATION,
                "no key for OpenAI: set OPENAI_API_KEY, or OPENAI_BASE_URL for another compatible server",
            )
        model = request.model.removeprefix(self._provider + "/")
        completion = Completion(request, provider=self._provider, model=model, secret=self._api_key)
        exchange = await self._schemas.open(request, self._send)
        try:
            while (chunks := await exchange.read(whole=completion.finished)) is not None:
                for chunk in chunks:
                    for event in completion.take(chunk):
                        yield event
            yield completion.response()
        finally:
            exchange.close()

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._http.aclose()

    async def _send(self, request: ModelRequest, by_schema: bool) -> Exchange:
        model = request.model.removeprefix(self._provider + "/")
        body = chat_request(
            request,
            model,
            self._tools,
            provider=self._provider,
            by_schema=by_schema,
            for_openai=self._for_openai,
        )
        return await self._http.post(body)

    def _has_native(self, model: str, schema: Mapping[str, Any]) -> bool:
        """OpenAI's own older models have no such mode; of other servers nothing is known until they refuse it."""
        return not self._for_openai or bundled_prices().facts_of(model).may("response_schema")
