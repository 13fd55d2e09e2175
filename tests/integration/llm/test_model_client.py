"""The whole client as a runner gets it: retry, timeouts, prices and routing together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import (
    ModelClient,
    ModelEvent,
    ModelPolicies,
    ModelRequest,
    ModelResponse,
    StreamRestarted,
    TextDelta,
)
from app.engine.usage import Spend
from app.llm.factory import ModelConfig, build_model_client
from tests.model_server import ModelServer, Reply


class Waits(list[float]):
    async def sleep(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def client(server: ModelServer, waits: Waits, tmp_path: Path) -> AsyncIterator[ModelClient]:
    (tmp_path / "hello.yaml").write_text("- text: Hello from a file.", encoding="utf-8")
    config = ModelConfig("sk-1", server.base_url, scripts_dir=tmp_path)
    client = build_model_client(config, sleep=waits.sleep, uniform=lambda: 0.0)
    yield client
    await client.aclose()


def _request(model: str = "openai/gpt-4o", policies: ModelPolicies | None = None) -> ModelRequest:
    return ModelRequest(model, [Message(Role.USER, "Hi")], policies=policies or ModelPolicies())


async def _events(client: ModelClient, request: ModelRequest) -> list[ModelEvent]:
    return [event async for event in client.stream(request)]


def _response(events: list[ModelEvent]) -> ModelResponse:
    last = events[-1]
    assert isinstance(last, ModelResponse)
    return last


async def test_an_answer_has_its_price(server: ModelServer, client: ModelClient) -> None:
    server.script([Reply(usage={"prompt_tokens": 1000, "completion_tokens": 100})])
    assert _response(await _events(client, _request())).cost_usd == Decimal("0.0035")


async def test_a_model_that_nobody_has_priced_has_no_cost(client: ModelClient) -> None:
    assert _response(await _events(client, _request("openai/my-own"))).cost_usd is None


async def test_a_rate_limit_is_waited_out_as_long_as_the_provider_asks(
    server: ModelServer, client: ModelClient, waits: Waits
) -> None:
    server.script([Reply.error(429, headers={"Retry-After": "7"}), Reply.error(503)])
    assert _response(await _events(client, _request())).text == "Hi"
    assert waits == [7.0, 0.0]
    assert len(server.requests) == 3


async def test_a_wait_may_be_asked_for_as_a_date_or_in_milliseconds(
    server: ModelServer, client: ModelClient, waits: Waits
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    exact = {"Retry-After": "8", "retry-after-ms": "1250"}
    server.script([Reply.error(429, headers={"Retry-After": date}), Reply.error(429, headers=exact)])
    assert _response(await _events(client, _request())).text == "Hi"
    assert 20 < waits[0] <= 30
    assert waits[1:] == [1.25]


@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "inf"])
async def test_what_is_no_wait_is_passed_over(
    server: ModelServer, client: ModelClient, waits: Waits, value: str
) -> None:
    server.script([Reply.error(429, headers={"retry-after-ms": value, "Retry-After": "3"})])
    await _events(client, _request())
    assert waits == [3.0]


async def test_tries_end_with_the_last_error(server: ModelServer, client: ModelClient) -> None:
    server.script([Reply.error(500, f"number {number}") for number in range(5)])
    with pytest.raises(ModelError, match="number 1"):
        await _events(client, _request(policies=ModelPolicies(max_attempts=2)))
    assert len(server.requests) == 2


async def test_a_request_that_is_wrong_is_not_tried_again(server: ModelServer, client: ModelClient) -> None:
    server.script([Reply.error(400, "no")])
    with pytest.raises(ModelError):
        await _events(client, _request())
    assert len(server.requests) == 1


async def test_a_stream_cut_after_text_starts_again(server: ModelServer, client: ModelClient) -> None:
    server.script([Reply(text=["Hal"], cut_after=1), Reply(text=["Hello"])])
    events = await _events(client, _request())
    assert [type(event) for event in events] == [TextDelta, Spend, StreamRestarted, TextDelta, ModelResponse]
    assert _response(events).text == "Hello"


@pytest.mark.parametrize(
    ("reply", "policies"),
    [
        (Reply(delay_s=600), ModelPolicies(max_attempts=1, first_byte_s=0.05)),
        (Reply(first_chunk_delay_s=600), ModelPolicies(max_attempts=1, first_byte_s=0.05)),
        (Reply(text=["Hi"], done=False, hold=True), ModelPolicies(max_attempts=1, between_chunks_s=0.05)),
    ],
)
async def test_a_silent_server_is_a_timeout_and_is_left(
    server: ModelServer, client: ModelClient, reply: Reply, policies: ModelPolicies
) -> None:
    server.script([reply])
    with pytest.raises(ModelError) as caught:
        await _events(client, _request(policies=policies))
    assert caught.value.code is ModelErrorCode.TIMEOUT
    await server.until(lambda server: server.aborted == 1 and server.open == 0)


async def test_offline_models_answer_at_no_cost(server: ModelServer, client: ModelClient) -> None:
    scripted = _response(await _events(client, _request("scripted/hello")))
    demo = _response(await _events(client, _request("demo/echo")))
    assert (scripted.text, scripted.cost_usd) == ("Hello from a file.", 0)
    assert (demo.text, demo.cost_usd) == ("Hi", 0)
    assert not server.requests
