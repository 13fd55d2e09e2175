from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.body import MAX_DEPTH, parse
from app.api.errors import InvalidRequest
from tests.unit.api.conftest import MAX_BODY_BYTES, StubServices
from tests.unit.api.records import a_run


def _nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b'{"a": "\\\\u0000"}',
        b'{"a": 9223372036854775807, "b": -9223372036854775808}',
        b'{"a": "12345678901234567890123"}',
        b'{"a": 1e308, "b": 0.1234567890123456789}',
        '{"a": "\u2028 \U0001f600 \u0085"}'.encode(),
        b'{"a": "\\ud83d\\ude00"}',
        b"[" + b'{"a": 1},' * 200 + b"1]",
        _nested(MAX_DEPTH),
    ],
)
def test_what_can_be_stored_is_read(raw: bytes) -> None:
    parse(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "malformed"),
        (b"", "malformed"),
        (b"{'a': 1}", "malformed"),
        (b'{"a": 1,}', "malformed"),
        (b'{"a": NaN}', "malformed"),
        (b'{"a": Infinity}', "malformed"),
        (b'{"a": -Infinity}', "malformed"),
        (b'{"a": 1e400}', "malformed"),
        (b'{"a": ' + b"1" * 400 + b"}", "malformed"),
        (b'{"a": "\\ud800"}', "malformed"),
        (b'{"\\udfff": 1}', "malformed"),
        (b'{"a": "\xff"}', "malformed"),
        (b'{"a": "\xed\xa0\x80"}', "malformed"),
        (b"\xef\xbb\xbf{}", "malformed"),
        ('{"a": 1}'.encode("utf-16"), "malformed"),
        (b'{"a": "\x00"}', "malformed"),
        (b'{"a": 9223372036854775808}', "64 bits"),
        (b'{"a": [-9223372036854775809]}', "64 bits"),
        (b'{"a": 123456789012345678901234567890}', "64 bits"),
        (_nested(MAX_DEPTH + 1), "deeper"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "deeper"),
        (_nested(10_000), "malformed"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "malformed"),
    ],
)
def test_what_cannot_be_stored_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse(raw)


@pytest.mark.parametrize(
    ("raw", "loc"),
    [
        (b'"\\u0000"', ("body",)),
        (b'{"a": {"b": ["x", "y\\u0000"]}}', ("body", "a", "b", 1)),
        (b'{"a": {"b\\u0000": 1}}', ("body", "a")),
    ],
)
def test_a_nul_character_is_refused_where_it_is(raw: bytes, loc: tuple[str | int, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(raw)
    assert refused.value.problems[0].loc == loc


@pytest.fixture
def created(services: StubServices) -> list[Any]:
    """What the stub service was asked to create."""
    commands: list[Any] = []

    class Threads:
        async def create(self, thread_id: str | None, metadata: dict[str, str], **_: object) -> Any:
            commands.append((thread_id, metadata))
            raise RuntimeError("far enough")

    services.threads = Threads()
    return commands


@pytest.mark.parametrize("body", [b"", b"{}", b" { } "])
async def test_an_empty_body_is_an_empty_object(client: httpx.AsyncClient, created: list[Any], body: bytes) -> None:
    await client.post("/threads", content=body)
    assert created == [(None, {})]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "APPLICATION/JSON; charset=utf-8",
        "application/problem+json",
        "application/vnd.x-y.z+json ; a=b",
        None,
    ],
)
async def test_json_under_any_of_its_names_is_read(
    client: httpx.AsyncClient, created: list[Any], content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    await client.post("/threads", content=b'{"thread_id": "t"}', headers=headers)
    assert created == [("t", {})]


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "",
        "json",
    ],
)
async def test_another_media_type_is_415(client: httpx.AsyncClient, created: list[Any], content_type: str) -> None:
    answer = await client.post("/threads", content=b"{}", headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert created == []


async def test_an_empty_body_needs_no_media_type(client: httpx.AsyncClient, created: list[Any]) -> None:
    await client.post("/threads", headers={"Content-Type": "text/plain"})
    assert created == [(None, {})]


async def test_a_body_up_to_its_bound_is_read_and_one_byte_more_is_413(
    client: httpx.AsyncClient, created: list[Any]
) -> None:
    body = b'{"thread_id": "t"}'
    longest = body + b" " * (MAX_BODY_BYTES - len(body))
    await client.post("/threads", content=longest)
    assert created == [("t", {})]
    answer = await client.post("/threads", content=longest + b" ")
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


async def test_a_body_of_unknown_size_is_read_no_further_than_its_bound(app: FastAPI) -> None:
    chunks_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal chunks_read
        while True:
            chunks_read += 1
            yield b" " * 1000

    transport = _Chunked(app)
    status = await transport.post("/threads", endless())
    assert status == 413
    assert chunks_read == MAX_BODY_BYTES // 1000 + 1


async def test_a_caller_that_leaves_while_sending_is_answered_nothing(app: FastAPI) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"{"

    assert await _Chunked(app).post("/threads", broken()) is None


class _Chunked:
    """Sends a body piece by piece, and goes away when there are no more pieces."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def post(self, path: str, chunks: AsyncIterator[bytes]) -> int | None:
        status: int | None = None

        async def receive() -> dict[str, Any]:
            try:
                return {"type": "http.request", "body": await anext(chunks), "more_body": True}
            except StopAsyncIteration:
                return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": None,
            "server": None,
        }
        await self._app(scope, receive, send)
        return status


async def test_a_request_without_a_body_of_its_own_takes_none(
    client: httpx.AsyncClient, services: StubServices
) -> None:
    class Runs:
        async def cancel(self, run_id: str) -> Any:
            return a_run(run_id=run_id)

    services.runs = Runs()
    assert (await client.post("/runs/r/cancel", json={"reason": "x"})).status_code == 422
    assert (await client.post("/runs/r/cancel", json=[])).status_code == 422
    assert (await client.post("/runs/r/cancel", json={})).status_code == 200
    assert (await client.post("/runs/r/cancel")).status_code == 200
