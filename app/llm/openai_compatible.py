"""The native client: OpenAI's chat completions over aiohttp, for OpenAI and for all servers that speak them.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from yarl import URL

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelEvent, ModelRequest
from app.llm.answer_body import AnswerBody, BodyError
from app.llm.chat_messages import ToolsJson, chat_request
from app.llm.completion import Completion
from app.llm.json_values import one_line
from app.llm.provider_errors import Clock, error_of_response, utc_now

_MAX_ERROR_BYTES = 64 * 1024


class OpenAICompatibleClient:
    """A `ModelClient` for one chat-completions server. Always streams; has no timeouts of its own.

    Args:
        base_url: up to and including the version, such as `https://api.openai.com/v1`.
        api_key: sent as a bearer token; None for servers that want none.
        provider: the prefix of the model names that this client answers, and the provider in its responses.
        now: the clock that a Retry-After date is held against; timezone-aware.
        end_grace_s: seconds that a server may take to end a body after it has sent all of the answer; a connection
            that is not free by then is closed.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        provider: str = "openai",
        now: Clock = utc_now,
        end_grace_s: float = 0.25,
    ) -> None:
        self._url = URL(base_url.rstrip("/") + "/chat/completions")
        self._api_key = api_key
        self._provider = provider
        self._now = now
        self._end_grace_s = end_grace_s
        self._proxy = proxy_for(self._url)
        self._tools = ToolsJson()
        self._session: aiohttp.ClientSession | None = None
        self._for_openai = self._url.host == "api.openai.com"

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        if self._for_openai and self._api_key is None:
            raise ModelError(
                ModelErrorCode.AUTHENTICATION,
                "no key for OpenAI: set OPENAI_API_KEY, or OPENAI_BASE_URL for another compatible server",
            )
        model = request.model.removeprefix(self._provider + "/")
        completion = Completion(request, provider=self._provider, model=model, secret=self._api_key)
        response = await self._post(chat_request(request, model, self._tools, for_openai=self._for_openai))
        try:
            if response.status != 200:
                raise await self._error_of(response)
            body = AnswerBody(response, self._end_grace_s)
            while (texts := await self._read(body, completion)) is not None:
                for text in texts:
                    for event in completion.take(self._parsed(text)):
                        yield event
            yield completion.response()
        finally:
            # Gives a connection that was read to its end back to the pool, and closes any other at once.
            response.release()

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {
                "Accept": "text/event-stream, application/json",
                "Accept-Encoding": "identity",  # a compressing proxy would hold deltas back
                "Content-Type": "application/json",
                "User-Agent": "agent-runner",
            }
            if self._api_key:
                headers["Authorization"] = f"Bearer {self._api_key}"
            self._session = aiohttp.ClientSession(
                # Thousands of runs may wait for their model at once; the engine's own limits say how many.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=headers,
            )
        return self._session

    async def _post(self, body: bytes) -> aiohttp.ClientResponse:
        try:
            # A redirected POST would become a GET, or carry the key elsewhere.
            return await self._open_session().post(self._url, data=body, allow_redirects=False, proxy=self._proxy)
        except (aiohttp.ClientError, OSError) as error:
            raise self._connection_error("no answer", error) from error

    async def _read(self, body: AnswerBody, completion: Completion) -> list[bytes] | None:
        try:
            return await body.read()
        except BodyError as error:
            raise self._invalid(error.what, error.seen) from None
        except (aiohttp.ClientError, OSError) as error:
            # Once the provider has said why it stopped, a connection that breaks takes nothing with it.
            if completion.finished:
                return None
            raise self._connection_error("the connection broke in the middle of an answer", error) from error

    async def _error_of(self, response: aiohttp.ClientResponse) -> ModelError:
        try:
            body = await response.content.read(_MAX_ERROR_BYTES)
        except (aiohttp.ClientError, OSError):
            body = b""  # the status says enough
        return error_of_response(
            response.status,
            body,
            response.headers,
            provider=self._provider,
            now=self._now,
            secret=self._api_key,
        )

    def _parsed(self, text: bytes) -> object:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise self._invalid("an answer that is no JSON", text) from None

    def _invalid(self, what: str, seen: bytes) -> ModelError:
        snippet = one_line(seen[:400].decode("utf-8", "replace"), 120)
        message = f"{self._provider}: {what}" + (f": {snippet}" if snippet else "")
        return ModelError(ModelErrorCode.INVALID_RESPONSE, self._without_key(message))

    def _connection_error(self, what: str, error: Exception) -> ModelError:
        said = one_line(str(error), 200) or type(error).__name__
        message = f"{self._provider}: {what}: {said}"
        return ModelError(ModelErrorCode.CONNECTION, self._without_key(message))

    def _without_key(self, message: str) -> str:
        return message.replace(self._api_key, "***") if self._api_key else message


def proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for this host; asked once, as it stays while the process lives."""
    return None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)
