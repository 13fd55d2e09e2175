"""What every native client needs of HTTP: one endpoint, its connections, its answers and its failures."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from yarl import URL

from app.engine.errors import ModelError, ModelErrorCode
from app.llm.answer_body import AnswerBody, BodyError
from app.llm.json_values import one_line
from app.llm.plain_words import plain_words
from app.llm.provider_errors import Clock, error_of_response, utc_now

END_GRACE_S = 0.25
_MAX_ERROR_BYTES = 64 * 1024
_HEADERS = {
    "Accept": "text/event-stream, application/json",
    "Accept-Encoding": "identity",  # a compressing proxy would hold deltas back
    "Content-Type": "application/json",
    "User-Agent": "agent-runner",
}


class ProviderHttp:
    """One endpoint of one provider. Has no timeouts of its own.

    Args:
        url: where requests are posted to.
        provider: the name that errors begin with.
        headers: what is sent with each request beside the usual.
        secret: a text that error messages must not repeat, such as the key.
        now: the clock that a Retry-After date is held against; timezone-aware.
        end_grace_s: seconds that a server may take to end a body after it has sent all of the answer; a connection
            that is not free by then is closed.
    """

    def __init__(
        self,
        url: str,
        *,
        provider: str,
        headers: Mapping[str, str],
        secret: str | None,
        now: Clock = utc_now,
        end_grace_s: float = END_GRACE_S,
    ) -> None:
        self.url = URL(url)
        self._provider = provider
        self._headers = {**_HEADERS, **headers}
        self._secret = secret
        self._now = now
        self._end_grace_s = end_grace_s
        self._proxy = proxy_for(self.url)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: bytes) -> Exchange:
        """Send a request; its answer, of which nothing but the status has been read.

        Raises:
            ModelError: no answer, or one with another status than 200.
        """
        try:
            # A redirected POST would become a GET, or carry the key elsewhere.
            response = await self._open_session().post(self.url, data=body, allow_redirects=False, proxy=self._proxy)
        except (aiohttp.ClientError, OSError) as error:
            raise _connection_error(self._provider, "no answer", error, self._secret) from error
        if response.status == 200:
            return Exchange(response, self._provider, self._secret, self._end_grace_s)
        try:
            raise await self._error_of(response)
        finally:
            response.release()

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Thousands of runs may wait for their model at once; the engine's own limits say how many.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
            )
        return self._session

    async def _error_of(self, response: aiohttp.ClientResponse) -> ModelError:
        try:
            body = await response.content.read(_MAX_ERROR_BYTES)
        except (aiohttp.ClientError, OSError):
            body = b""  # the status says enough
        return error_of_response(
            response.status, body, response.headers, provider=self._provider, now=self._now, secret=self._secret
        )


class Exchange:
    """An answer with status 200, read piece by piece; `close` it in any case."""

    __slots__ = ("_body", "_provider", "_response", "_secret")

    def __init__(self, response: aiohttp.ClientResponse, provider: str, secret: str | None, end_grace_s: float) -> None:
        self._response = response
        self._provider = provider
        self._secret = secret
        self._body = AnswerBody(response, end_grace_s)

    async def read(self, *, whole: bool) -> list[object] | None:
        """The JSON values that the next piece of the body completes, perhaps none yet; None after the last.

        Args:
            whole: whether all that matters of the answer has come, so that a connection that breaks takes nothing.

        Raises:
            ModelError: the connection broke, or what came is no answer.
        """
        try:
            texts = await self._body.read()
        except BodyError as error:
            raise self._invalid(error.what, error.seen) from None
        except (aiohttp.ClientError, OSError) as error:
            if whole:
                return None
            what = "the connection broke in the middle of an answer"
            raise _connection_error(self._provider, what, error, self._secret) from error
        return None if texts is None else [self._parsed(text) for text in texts]

    async def end(self) -> None:
        """Nothing more is wanted: wait a moment for the body to end, so that its connection can serve again."""
        await self._body.drain()

    def close(self) -> None:
        """Give a connection that was read to its end back to the pool, and close any other at once."""
        self._response.release()

    def _parsed(self, text: bytes) -> object:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise self._invalid("an answer that is no JSON", text) from None

    def _invalid(self, what: str, seen: bytes) -> ModelError:
        snippet = one_line(seen[:400].decode("utf-8", "replace"), 120)
        message = f"{self._provider}: {what}" + (f": {snippet}" if snippet else "")
        return ModelError(ModelErrorCode.INVALID_RESPONSE, _without(self._secret, message))


def _connection_error(provider: str, what: str, error: Exception, secret: str | None) -> ModelError:
    """A connection that failed, in a sentence."""
    said = one_line(plain_words(str(error)), 200) or type(error).__name__
    return ModelError(ModelErrorCode.CONNECTION, _without(secret, f"{provider}: {what}: {said}"))


def _without(secret: str | None, message: str) -> str:
    return message.replace(secret, "***") if secret else message


def proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for this host; asked once, as it stays while the process lives."""
    return None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)
