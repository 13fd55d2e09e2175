"""Staying within a provider's limit, as the provider sees it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelClient, ModelRequest, ModelResponse
from app.llm.live_replicas import LiveReplicas
from app.llm.rate_limit import RateLimit
from tests.integration.llm.calls import (
    a_client,
    a_provider,
    a_request,
    answer_of,
    begun,
    ended,
    events_of,
    failure_of,
)
from tests.model_server import ModelServer, Reply

MINUTE_S = 1.0


def most_in_a_window(server: ModelServer, window_s: float = MINUTE_S) -> int:
    """The most requests that the server saw in any span as long as that."""
    times = [request.at for request in server.requests]
    return max(sum(at <= each < at + window_s for each in times) for at in times)


def _limited(server: ModelServer, limit: RateLimit, **more: Any):
    return a_client({"openai": a_provider(server, rate_limit=limit)}, **{"rate_window_s": MINUTE_S, **more})


def _text(number: int) -> ModelRequest:
    return a_request(f"call {number}")


async def _asked(server: ModelServer) -> list[str]:
    return [request.body["messages"][0]["content"] for request in server.requests]


async def test_no_window_holds_more_requests_than_the_limit(server: ModelServer) -> None:
    dice = random.Random(1)
    server.answer = lambda _: Reply(delay_s=dice.uniform(0, 0.2))
    async with _limited(server, RateLimit(requests=5, wait_s=60)) as client:
        await asyncio.gather(*[answer_of(client, _text(number)) for number in range(18)])
    assert len(server.requests) == 18
    assert most_in_a_window(server) <= 5
    # All that the limit allows is used, but for the time on the way.
    times = [request.at for request in server.requests]
    assert times[-1] - times[0] < 3 * MINUTE_S + 3 * 0.4


async def test_a_request_that_is_long_on_the_way_counts_from_when_it_may_have_arrived(server: ModelServer) -> None:
    """A provider that reads the first request late would see it together with those of the next minute."""
    server.script([Reply(delay_s=0.8)])
    async with _limited(server, RateLimit(requests=1, wait_s=60)) as client:
        first = await begun(client, _text(1))
        await server.until(lambda server: len(server.requests) == 1)
        second = await begun(client, _text(2))
        await first
        answered_at = asyncio.get_running_loop().time()
        await second
    assert server.requests[1].at - answered_at >= MINUTE_S - 0.05


async def test_calls_go_in_the_order_in_which_they_came(server: ModelServer) -> None:
    async with _limited(server, RateLimit(requests=2, wait_s=60)) as client:
        calls = [await begun(client, _text(number)) for number in range(6)]
        await asyncio.gather(*calls)
    asked = await _asked(server)
    assert [sorted(asked[place : place + 2]) for place in (0, 2, 4)] == [
        ["call 0", "call 1"],
        ["call 2", "call 3"],
        ["call 4", "call 5"],
    ]


async def test_a_small_call_does_not_overtake_one_that_waits_for_more(server: ModelServer) -> None:
    server.script([Reply(delay_s=0.3), Reply(), Reply()])
    async with _limited(server, RateLimit(tokens=100, wait_s=60), rate_window_s=600.0) as client:
        sizes = (("first", 60), ("big", 60), ("small", 1))
        calls = [await begun(client, a_request(text, settings={"max_tokens": tokens})) for text, tokens in sizes]
        await asyncio.gather(*calls)
    assert await _asked(server) == ["first", "big", "small"]


async def test_a_call_that_cannot_have_its_turn_in_time_is_told_so_at_once(server: ModelServer) -> None:
    async with _limited(server, RateLimit(requests=1, wait_s=0.5)) as client:
        await answer_of(client, _text(1))
        before = asyncio.get_running_loop().time()
        error = await failure_of(client, _text(2))
        assert asyncio.get_running_loop().time() - before < 0.4
    assert (error.code, error.retryable) == (ModelErrorCode.RATE_LIMITED, True)
    assert error.retry_after_s is not None
    assert 0.5 < error.retry_after_s <= MINUTE_S
    assert len(server.requests) == 1


async def test_nobody_joins_a_line_that_is_longer_than_the_wait(server: ModelServer) -> None:
    async with _limited(server, RateLimit(requests=1, wait_s=1.5)) as client:
        calls = [await begun(client, _text(number)) for number in range(2)]
        error = await failure_of(client, _text(2))
        assert error.code is ModelErrorCode.RATE_LIMITED
        assert [len(await call) for call in calls] == [3, 3]
    assert len(server.requests) == 2


async def test_a_wait_has_its_own_deadline(server: ModelServer) -> None:
    """Tokens that are reserved may come back at any moment, so there is something to wait for; here they do not."""
    server.script([Reply(delay_s=600)])
    limit = RateLimit(tokens=100, wait_s=0.3)
    async with _limited(server, limit) as client:
        first = await begun(client, a_request(settings={"max_tokens": 90}))
        await server.until(lambda server: server.open == 1)
        error = await failure_of(client, a_request(settings={"max_tokens": 90}))
        assert error.code is ModelErrorCode.RATE_LIMITED
        await ended(first)


async def test_whoever_gives_up_waiting_leaves_no_hole(server: ModelServer) -> None:
    async with _limited(server, RateLimit(requests=1, wait_s=60)) as client:
        await answer_of(client, _text(0))
        calls = [await begun(client, _text(number)) for number in range(1, 4)]
        await ended(*calls[:2])
        await calls[2]
    assert await _asked(server) == ["call 0", "call 3"]
    assert server.requests[1].at - server.requests[0].at < 1.5 * MINUTE_S


async def test_a_call_that_is_cancelled_as_its_turn_comes_gives_it_back(server: ModelServer) -> None:
    server.script([Reply(usage={"prompt_tokens": 5, "completion_tokens": 0}, delay_s=0.2)])
    # The end of the first call gives its tokens back and with them the second its turn, which is cancelled at that.
    async with _limited(server, RateLimit(tokens=100, wait_s=60), rate_window_s=600.0) as client:
        first = await begun(client, a_request(settings={"max_tokens": 90}))
        await server.until(lambda server: server.open == 1)
        second = await begun(client, a_request(settings={"max_tokens": 80}))
        third = await begun(client, a_request("third", settings={"max_tokens": 80}))
        first.add_done_callback(lambda _: second.cancel())
        await first
        await asyncio.wait({second})
        await asyncio.wait_for(third, 5)
    assert await _asked(server) == ["Hi", "third"]


async def test_tokens_are_reserved_before_and_corrected_after(server: ModelServer) -> None:
    """40 tokens of output are asked for and 10 are used: three calls fit into 100 tokens only one after the other."""
    server.answer = lambda _: Reply(usage={"prompt_tokens": 10, "completion_tokens": 10}, delay_s=0.2)
    request = a_request("x" * 24, settings={"max_tokens": 60})
    async with _limited(server, RateLimit(tokens=100, wait_s=5), rate_window_s=600.0) as client:
        second_came: list[int] = []

        async def call() -> ModelResponse:
            answer = await answer_of(client, request)
            second_came.append(len(server.requests))
            return answer

        await asyncio.gather(call(), call())
        assert second_came[0] == 1  # the second one was not sent before the first had ended
        error = await failure_of(client, a_request("x" * 24, settings={"max_tokens": 60}))
    assert error.code is ModelErrorCode.RATE_LIMITED  # 40 are used, and 70 are asked for
    assert len(server.requests) == 2


async def test_a_call_that_was_refused_gives_its_tokens_back(server: ModelServer) -> None:
    server.script([Reply.error(500)] * 5)
    request = a_request(settings={"max_tokens": 90})
    async with _limited(server, RateLimit(tokens=100, wait_s=0), rate_window_s=600.0) as client:
        codes = [(await failure_of(client, request)).code for _ in range(3)]
    assert codes == [ModelErrorCode.SERVER_ERROR] * 3


async def test_a_call_that_never_fits_is_refused_with_the_numbers(server: ModelServer) -> None:
    async with _limited(server, RateLimit(tokens=100)) as client:
        error = await failure_of(client, a_request(settings={"max_tokens": 1000}))
    assert "1005 tokens" in error.message
    assert "100 a minute" in error.message


async def test_replicas_share_a_limit_and_the_share_of_one_that_is_gone_stays_its_own_for_a_minute(
    server: ModelServer,
) -> None:
    replicas = LiveReplicas()
    replicas.counted(2)
    async with _limited(server, RateLimit(requests=4, wait_s=0), replicas=replicas) as client:
        assert await _answered(client, 4) == 2
        replicas.counted(1)
        assert await _answered(client, 4) == 0
        async with asyncio.timeout(10):
            while replicas.most_within(MINUTE_S) > 1:
                await asyncio.sleep(0.05)
        assert await _answered(client, 6) == 4
    assert len(server.requests) == 6


async def test_other_providers_have_limits_of_their_own(server: ModelServer, other: ModelServer) -> None:
    limited = a_provider(server, rate_limit=RateLimit(requests=1, wait_s=0))
    async with a_client({"openai": limited, "spare": a_provider(other)}) as client:
        await answer_of(client, _text(1))
        for number in range(5):
            await answer_of(client, a_request(f"{number}", model="spare/small"))
        assert (await failure_of(client, _text(2))).code is ModelErrorCode.RATE_LIMITED


async def _answered(client: ModelClient, calls: int) -> int:
    """How many of so many calls were let through."""
    ends = await asyncio.gather(*[events_of(client, _text(n)) for n in range(calls)], return_exceptions=True)
    return sum(not isinstance(end, ModelError) for end in ends)
