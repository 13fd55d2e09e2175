"""Embeddings from a real server over real connections, with all that goes wrong there."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.llm.embedding_policies import RestingEmbedder, RetryingEmbedder
from app.llm.embeddings import OpenAIEmbeddings
from tests.model_server import ModelServer, Reply
from tests.model_server.embeddings import vector

KEY = "sk-not-to-be-seen"


@pytest.fixture
async def client(server: ModelServer) -> AsyncIterator[OpenAIEmbeddings]:
    client = OpenAIEmbeddings(server.base_url, "meaning-1", KEY)
    yield client
    await client.aclose()


async def failure(client: OpenAIEmbeddings | RetryingEmbedder | RestingEmbedder, texts: int = 1) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await client.embed(["tea"] * texts)
    assert KEY not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


async def test_vectors_come_in_the_order_of_the_texts(server: ModelServer, client: OpenAIEmbeddings) -> None:
    assert await client.embed(["tea", "a dog", "seat"]) == [vector("tea"), vector("a dog"), vector("seat")]
    (request,) = server.embedding_requests
    assert request.body == {"model": "meaning-1", "input": ["tea", "a dog", "seat"]}
    assert request.headers["authorization"] == f"Bearer {KEY}"


async def test_a_server_without_numbers_sends_them_in_order(server: ModelServer, client: OpenAIEmbeddings) -> None:
    server.break_embeddings(lambda _: Reply(body={"data": [{"embedding": [1, 0]}, {"embedding": [0, 2.5]}]}))
    assert await client.embed(["a", "b"]) == [[1.0, 0.0], [0.0, 2.5]]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b"[]",
        {},
        {"data": None},
        {"data": []},
        {"data": [{"embedding": [1.0]}, {"embedding": [1.0]}]},
        {"data": [{"index": 1, "embedding": [1.0]}]},
        {"data": [{"index": "0x", "embedding": []}]},
        {"data": [{"index": [0], "embedding": "AAAA"}]},
        {"data": [{"embedding": []}]},
        {"data": [{"embedding": [0.0, 0.0]}]},
        {"data": [{"embedding": [1.0, None]}]},
        {"data": [{"embedding": [1.0, "2"]}]},
        {"data": [{"embedding": [1.0, True]}]},
        b'{"data": [{"embedding": [1e300, 1.0]}]}',
        {"data": [{"embedding": [1.0] * 16_001}]},
    ],
    ids=lambda body: str(body)[:50],
)
async def test_an_answer_that_is_no_embedding_is_told_as_one(
    body: Any, server: ModelServer, client: OpenAIEmbeddings
) -> None:
    server.break_embeddings(lambda _: Reply(body=body))
    error = await failure(client)
    assert error.code is ModelErrorCode.INVALID_RESPONSE
    assert error.message.startswith("embeddings: the answer ")


async def test_embeddings_of_different_lengths_are_refused(server: ModelServer, client: OpenAIEmbeddings) -> None:
    server.break_embeddings(lambda _: Reply(body={"data": [{"embedding": [1]}, {"embedding": [0, 1]}]}))
    assert (await failure(client, texts=2)).code is ModelErrorCode.INVALID_RESPONSE


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ModelErrorCode.INVALID_REQUEST),
        (401, ModelErrorCode.AUTHENTICATION),
        (404, ModelErrorCode.MODEL_NOT_FOUND),
        (429, ModelErrorCode.RATE_LIMITED),
        (503, ModelErrorCode.SERVER_ERROR),
        (302, ModelErrorCode.INVALID_REQUEST),
    ],
)
async def test_a_refusal_is_classed_by_its_status(
    status: int, code: ModelErrorCode, server: ModelServer, client: OpenAIEmbeddings
) -> None:
    refusal = Reply.error(status, f"your key {KEY} is no good", headers={"Location": "/elsewhere"})
    server.break_embeddings(lambda _: refusal)
    assert (await failure(client)).code is code


async def test_a_server_that_is_not_there_is_told_as_one() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        client = OpenAIEmbeddings(f"http://127.0.0.1:{closed.getsockname()[1]}/v1", "meaning-1", KEY)
        assert (await failure(client)).code is ModelErrorCode.CONNECTION
        await client.aclose()


async def test_a_server_that_says_nothing_is_not_waited_for(server: ModelServer) -> None:
    server.break_embeddings(lambda _: Reply(body={}, delay_s=60))
    client = OpenAIEmbeddings(server.base_url, "meaning-1", timeout_s=0.05)
    assert (await failure(client)).code is ModelErrorCode.TIMEOUT
    await client.aclose()


async def no_sleep(_seconds: float) -> None:
    pass


async def test_what_may_pass_is_tried_three_times(server: ModelServer, client: OpenAIEmbeddings) -> None:
    server.break_embeddings(lambda _: Reply.error(503))
    assert (await failure(RetryingEmbedder(client, sleep=no_sleep))).status == 503
    assert len(server.embedding_requests) == 3

    server.break_embeddings(lambda _: Reply.error(503) if len(server.embedding_requests) < 6 else None)
    assert await RetryingEmbedder(client, sleep=no_sleep).embed(["tea"]) == [vector("tea")]
    assert len(server.embedding_requests) == 6


async def test_what_will_not_pass_is_not_tried_again(server: ModelServer, client: OpenAIEmbeddings) -> None:
    server.break_embeddings(lambda _: Reply.error(401))
    await failure(RetryingEmbedder(client, sleep=no_sleep))
    assert len(server.embedding_requests) == 1


async def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for(
    server: ModelServer, client: OpenAIEmbeddings
) -> None:
    server.break_embeddings(lambda _: Reply.error(429, headers={"Retry-After": "3600"}))
    assert (await failure(RetryingEmbedder(client))).code is ModelErrorCode.RATE_LIMITED
    assert len(server.embedding_requests) == 1


async def test_all_tries_together_have_a_bound(server: ModelServer, client: OpenAIEmbeddings) -> None:
    server.break_embeddings(lambda _: Reply(body={}, delay_s=60))
    assert (await failure(RetryingEmbedder(client, total_s=0.05))).code is ModelErrorCode.TIMEOUT


async def test_after_a_failure_nobody_waits_for_the_server_for_a_while(
    server: ModelServer, client: OpenAIEmbeddings
) -> None:
    now = 100.0
    resting = RestingEmbedder(client, rest_s=10, clock=lambda: now)
    server.break_embeddings(lambda _: Reply.error(503, "too busy"))
    first = await failure(resting)
    server.break_embeddings(lambda _: None)
    now = 109.9
    assert (await failure(resting)).message == first.message
    assert len(server.embedding_requests) == 1
    now = 110.0
    assert await resting.embed(["tea"]) == [vector("tea")]
    now = 110.1
    assert await resting.embed(["tea"]) == [vector("tea")]


async def test_a_text_that_is_refused_is_no_reason_to_rest(server: ModelServer, client: OpenAIEmbeddings) -> None:
    resting = RestingEmbedder(client)
    server.break_embeddings(lambda body: Reply.error(400, "too long") if body["input"] == ["tea"] else None)
    assert (await failure(resting)).code is ModelErrorCode.INVALID_REQUEST
    assert await resting.embed(["seat"]) == [vector("seat")]
