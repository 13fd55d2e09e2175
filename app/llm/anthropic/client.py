"""The native client for Anthropic's Messages API over aiohttp.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import WarningCode
from app.engine.model import ModelEvent, ModelNotice, ModelRequest
from app.llm.anthropic.answer import MessageAnswer
from app.llm.anthropic.messages import (
    PROVIDER,
    declared_tools,
    former_tools,
    mark,
    mark_turns,
    plain_tools,
    system_blocks,
    turns,
)
from app.llm.anthropic.settings import MessagesSettings, messages_settings
from app.llm.chat_messages import ToolsJson
from app.llm.json_values import plain_mapping
from app.llm.pricing import bundled_prices
from app.llm.provider_errors import Clock, utc_now
from app.llm.provider_http import END_GRACE_S, Exchange, ProviderHttp
from app.llm.schema_subset import for_anthropic
from app.llm.structured_output import SchemaMode

ANTHROPIC_BASE_URL = "https://api.anthropic.com"
_VERSION = "2023-06-01"  # https://platform.claude.com/docs/en/api/versioning


class AnthropicClient:
    """A `ModelClient` for `anthropic/…`. Always streams; has no timeouts of its own.

    Args:
        base_url: without the version, as Anthropic's own clients have it.
        api_key: sent as `x-api-key`; None for servers that want none.
        caching: whether requests mark the prefixes that the next step of an agent will repeat, so that Anthropic
            charges a tenth for them then, and a quarter more now.
        now: the clock that a Retry-After date is held against; timezone-aware.
        end_grace_s: see `ProviderHttp`.
    """

    def __init__(
        self,
        base_url: str = ANTHROPIC_BASE_URL,
        api_key: str | None = None,
        *,
        caching: bool = True,
        now: Clock = utc_now,
        end_grace_s: float = END_GRACE_S,
    ) -> None:
        self._http = ProviderHttp(
            base_url.rstrip("/") + "/v1/messages",
            provider=PROVIDER,
            headers={"anthropic-version": _VERSION} | ({"x-api-key": api_key} if api_key else {}),
            secret=api_key,
            now=now,
            end_grace_s=end_grace_s,
        )
        self._api_key = api_key
        self._caching = caching
        self._tools = ToolsJson(declared_tools if caching else plain_tools)
        self._for_anthropic = self._http.url.host == "api.anthropic.com"
        self._schemas = SchemaMode(_has_native)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        if self._for_anthropic and self._api_key is None:
            raise ModelError(
                ModelErrorCode.AUTHENTICATION,
                "no key for Anthropic: set ANTHROPIC_API_KEY, or ANTHROPIC_BASE_URL for another server that speaks "
                "its Messages API",
            )
        answer = MessageAnswer(request, model=_name_of(request), secret=self._api_key)
        settings = _settings_of(request)
        exchange = await self._schemas.open(request, self._send)
        try:
            while not answer.ended and (events := await exchange.read(whole=answer.finished)) is not None:
                for event in events:
                    for meant in answer.take(event):
                        yield meant
            response = answer.response()
            for setting, reason in settings.left_out.items():
                message = f"{request.model} was called without {setting}: {reason}"
                yield ModelNotice(WarningCode.SETTING_IGNORED, message, {"model": request.model, "setting": setting})
            yield response
            if answer.ended:
                await exchange.end()
        finally:
            exchange.close()

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._http.aclose()

    async def _send(self, request: ModelRequest, by_schema: bool) -> Exchange:
        return await self._http.post(orjson.dumps(self._body(request, by_schema), default=plain_mapping))

    def _body(self, request: ModelRequest, by_schema: bool) -> dict[str, Any]:
        conversation, system = turns(request.messages), system_blocks(request.messages)
        if self._caching:
            mark(system)
            mark_turns(conversation)
        fields = _settings_of(request).fields
        body: dict[str, Any] = {"model": _name_of(request), "stream": True, "messages": conversation, **fields}
        if system:
            body["system"] = system
        if request.tools:
            body["tools"] = self._tools.of(request.tools)
        elif former := former_tools(request.messages):
            body["tools"] = former
            body["tool_choice"] = {"type": "none"}
        if by_schema and request.response_schema is not None:
            form = {"type": "json_schema", "schema": for_anthropic(request.response_schema)}
            body["output_config"] = {**body.get("output_config", {}), "format": form}
        return body


def _name_of(request: ModelRequest) -> str:
    return request.model.removeprefix(PROVIDER + "/")


def _settings_of(request: ModelRequest) -> MessagesSettings:
    facts = bundled_prices().facts_of(request.model)
    return messages_settings(request.settings, facts, has_tools=bool(request.tools))


def _has_native(model: str, schema: Mapping[str, Any]) -> bool:
    """Models from 4.5 on have it, without a header.

    https://platform.claude.com/docs/en/build-with-claude/structured-outputs
    """
    return bundled_prices().facts_of(model).may("native_structured_output") and for_anthropic(schema) is not None
