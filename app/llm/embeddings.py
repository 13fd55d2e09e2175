"""Embeddings over aiohttp, from OpenAI and all servers that speak its POST /embeddings.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson
from yarl import URL

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.memories import MAX_DIMENSIONS, Vector
from app.llm.json_values import as_array, as_count, as_object, one_line
from app.llm.provider_errors import Clock, error_in_stream, error_of_response, utc_now
from app.llm.provider_http import proxy_for

_WHO = "embeddings"
_TIMEOUT_S = 5.0
_CONNECT_S = 2.0
_CONNECTIONS = 16
_MAX_ANSWER_BYTES = 32 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024


class OpenAIEmbeddings:
    """Implements `app.engine.memories.Embedder`: one request for each call.

    Args:
        base_url: up to and including the version, such as `https://api.openai.com/v1`.
        model: sent as it is.
        api_key: sent as a bearer token; None for servers that want none.
        timeout_s: seconds for a whole request; waiting for a free connection is a part of it.
        now: the clock that a Retry-After date is held against; timezone-aware.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout_s: float = _TIMEOUT_S,
        now: Clock = utc_now,
    ) -> None:
        self._url = URL(base_url.rstrip("/") + "/embeddings")
        self._model = model
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._now = now
        self._proxy = proxy_for(self._url)
        self._session: aiohttp.ClientSession | None = None

    @property
    def model(self) -> str:
        return self._model

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """See `Embedder.embed`."""
        body = orjson.dumps({"model": self._model, "input": list(texts)})
        try:
            # A redirected POST would become a GET, or carry the key elsewhere.
            async with self._open_session().post(
                self._url, data=body, allow_redirects=False, proxy=self._proxy
            ) as response:
                if response.status != 200:
                    said = await response.content.read(_MAX_ERROR_BYTES)
                    raise error_of_response(
                        response.status, said, response.headers, provider=_WHO, now=self._now, secret=self._api_key
                    )
                answer = await _read(response)
        except TimeoutError as error:
            raise ModelError(ModelErrorCode.TIMEOUT, f"{_WHO}: no answer within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ModelError(ModelErrorCode.CONNECTION, self._told(error)) from error
        return self._vectors(answer, len(texts))

    async def aclose(self) -> None:
        """See `Embedder.aclose`."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json", "User-Agent": "agent-runner"}
            if self._api_key:
                headers["Authorization"] = f"Bearer {self._api_key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=60, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=headers,
            )
        return self._session

    def _told(self, error: Exception) -> str:
        said = one_line(str(error), 200) or type(error).__name__
        return f"{_WHO}: no answer: {said.replace(self._api_key, '***') if self._api_key else said}"

    def _vectors(self, answer: bytes, count: int) -> list[Vector]:
        try:
            document = as_object(orjson.loads(answer))
        except orjson.JSONDecodeError:
            raise _invalid("is no JSON") from None
        if (error := error_in_stream(document, provider=_WHO, secret=self._api_key)) is not None:
            raise error
        found = [as_object(item) for item in as_array(document.get("data"))]
        # Most servers send them in order, and some without their numbers.
        by_index = {as_count(item.get("index", place)): item for place, item in enumerate(found)}
        if len(found) != count or sorted(by_index) != list(range(count)):
            raise _invalid(f"does not have one embedding for each of {count} texts")
        vectors = [_vector(by_index[index].get("embedding")) for index in range(count)]
        if len({len(vector) for vector in vectors}) > 1:
            raise _invalid("has embeddings of different lengths")
        return vectors


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            raise _invalid(f"is longer than {_MAX_ANSWER_BYTES} bytes")
    return body


def _vector(value: object) -> Vector:
    numbers = as_array(value)
    if not 0 < len(numbers) <= MAX_DIMENSIONS:
        raise _invalid(f"has an embedding that is no list of 1 to {MAX_DIMENSIONS} numbers")
    vector = [_number(each) for each in numbers]
    # What has no direction is near to nothing, and its cosine is no number.
    if not math.hypot(*vector) > _SMALLEST:
        raise _invalid("has an embedding of zeros")
    return vector


# Rows hold single precision: beyond it a number is an infinity or nothing.
_LARGEST, _SMALLEST = 1e30, 1e-15


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise _invalid("has an embedding with something in it that is no number of single precision")
    return float(value)


def _invalid(what: str) -> ModelError:
    return ModelError(ModelErrorCode.INVALID_RESPONSE, f"{_WHO}: the answer {what}")
