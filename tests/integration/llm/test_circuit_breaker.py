"""A model that keeps failing is left alone until it has had time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelPolicies, ModelRequest
from app.llm.circuit_breaker import CircuitBreakerClient, CircuitLimits
from app.llm.openai_compatible import OpenAICompatibleClient
from app.llm.priced import PricedClient
from app.llm.router import ModelRouter
from app.llm.timeouts import TimeoutClient
from app.telemetry.metrics import Metrics
from tests.exposition import Exposition
from tests.integration.llm.calls import a_request, answer_of, begun, ended, failure_of
from tests.model_server import ModelServer, Reply

OPEN = ModelErrorCode.CIRCUIT_OPEN
SILENT = Reply(delay_s=600)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Breaker(CircuitBreakerClient):
    """A breaker of the whole inside of a client, whose time stands still until a test moves it."""

    def __init__(self, server: ModelServer) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.server = server
        openai = OpenAICompatibleClient(server.base_url)
        inner = PricedClient(TimeoutClient(ModelRouter({"openai": openai}, otherwise=openai)))
        super().__init__(inner, default=CircuitLimits(3, 30.0), most_circuits=2, metrics=self.metrics, clock=self.clock)

    async def fails(self, *replies: Reply, request: ModelRequest | None = None) -> list[ModelErrorCode]:
        self.server.script(replies)
        return [(await failure_of(self, request or a_request())).code for _ in replies]

    async def opens(self) -> None:
        await self.fails(*[Reply.error(500)] * 3)
        assert await self.refuses()

    async def refuses(self, model: str = "openai/gpt-4o") -> bool:
        """Whether a call is refused without a request."""
        asked = len(self.server.requests)
        try:
            await answer_of(self, a_request(model=model))
        except ModelError as error:
            return error.code is OPEN and len(self.server.requests) == asked
        return False

    def circuits(self, state: str) -> float:
        return Exposition(self.metrics.exposition()).value("agent_runner_model_circuits", state=state)


@pytest.fixture
async def breaker(server: ModelServer) -> AsyncIterator[Breaker]:
    breaker = Breaker(server)
    yield breaker
    await breaker.aclose()


@pytest.mark.parametrize(
    "reply",
    [Reply.error(500), Reply.error(503), Reply(cut_after=0), Reply(text=["Hal"], cut_after=1), SILENT, Reply(body="?")],
)
async def test_failures_in_a_row_open_the_circuit_for_a_while(breaker: Breaker, reply: Reply) -> None:
    request = a_request(policies=ModelPolicies(1, first_byte_s=0.1))
    codes = await breaker.fails(reply, reply, reply, request=request)
    assert OPEN not in codes
    error = await failure_of(breaker, request)
    assert (error.code, error.retryable, error.retry_after_s) == (OPEN, True, 30.0)
    breaker.clock.now += 20
    assert (await failure_of(breaker, request)).retry_after_s == 10.0
    assert len(breaker.server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429])
async def test_what_says_nothing_of_its_health_opens_nothing_and_breaks_no_row(breaker: Breaker, status: int) -> None:
    await breaker.fails(*[Reply.error(status)] * 5)
    assert not await breaker.refuses()
    await breaker.fails(Reply.error(500), Reply.error(500), Reply.error(status), Reply.error(500))
    assert await breaker.refuses()


async def test_an_answer_ends_the_row(breaker: Breaker) -> None:
    for _ in range(3):
        await breaker.fails(Reply.error(500), Reply.error(500))
        assert not await breaker.refuses()


async def test_each_model_has_a_circuit_of_its_own(breaker: Breaker) -> None:
    await breaker.opens()
    assert not await breaker.refuses("openai/gpt-4o-mini")


async def test_one_probe_goes_through_and_its_answer_closes_the_circuit(breaker: Breaker) -> None:
    await breaker.opens()
    assert breaker.circuits("open") == 1
    breaker.clock.now += 30
    breaker.server.script([Reply(delay_s=0.5)])
    probe = await begun(breaker, a_request())
    await breaker.server.until(lambda server: server.open == 1)
    assert breaker.circuits("half_open") == 1
    for _ in range(3):
        error = await failure_of(breaker, a_request())
        assert (error.code, error.retry_after_s) == (OPEN, 1.0)
    await probe
    assert not await breaker.refuses()
    assert len(breaker.server.requests) == 5
    assert (breaker.circuits("open"), breaker.circuits("half_open")) == (0, 0)
    await breaker.fails(Reply.error(500), Reply.error(500))
    assert not await breaker.refuses()


async def test_a_probe_that_fails_opens_it_again_for_the_whole_time(breaker: Breaker) -> None:
    await breaker.opens()
    breaker.clock.now += 30
    await breaker.fails(Reply.error(500))
    assert (await failure_of(breaker, a_request())).retry_after_s == 30.0
    breaker.clock.now += 30
    assert not await breaker.refuses()


async def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next_call(breaker: Breaker) -> None:
    await breaker.opens()
    breaker.clock.now += 30
    breaker.server.script([SILENT])
    probe = await begun(breaker, a_request())
    await breaker.server.until(lambda server: server.open == 1)
    assert await breaker.refuses()
    await ended(probe)
    assert not await breaker.refuses()


@pytest.mark.parametrize(("status", "closes"), [(400, True), (429, False)])
async def test_a_refusal_of_the_probe_closes_it_only_if_it_shows_that_the_provider_works(
    breaker: Breaker, status: int, closes: bool
) -> None:
    await breaker.opens()
    breaker.clock.now += 30
    await breaker.fails(Reply.error(status))
    await breaker.fails(Reply.error(500))
    assert await breaker.refuses() is not closes


async def test_calls_follow_a_probe_that_has_begun_to_answer_until_anything_fails(breaker: Breaker) -> None:
    await breaker.opens()
    breaker.clock.now += 30
    breaker.server.script([Reply(text=["Hal"], done=False, finish_reason=None, hold=True)])
    stream = breaker.stream(a_request())
    await anext(stream)
    assert not await breaker.refuses("openai/gpt-4o-mini")
    await breaker.fails(Reply.error(500))
    assert await breaker.refuses()
    await stream.aclose()
    assert await breaker.refuses()


async def test_a_call_from_before_it_opened_changes_nothing(breaker: Breaker) -> None:
    breaker.server.script([Reply(delay_s=0.3), Reply(status=500, body="no", delay_s=0.3)])
    good = await begun(breaker, a_request())
    await breaker.server.until(lambda server: len(server.requests) == 1)
    bad = await begun(breaker, a_request())
    await breaker.server.until(lambda server: len(server.requests) == 2)
    await breaker.opens()
    breaker.clock.now += 10
    await good
    with pytest.raises(ModelError, match="HTTP 500"):
        await bad
    assert (await failure_of(breaker, a_request())).retry_after_s == 20.0


async def test_only_models_that_have_just_failed_are_remembered(breaker: Breaker) -> None:
    for name in ("a", "b", "c"):
        for _ in range(3):
            await breaker.fails(Reply.error(500), request=a_request(model=f"openai/{name}"))
    assert not await breaker.refuses("openai/a")
    assert await breaker.refuses("openai/b")
    assert await breaker.refuses("openai/c")
