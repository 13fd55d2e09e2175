"""Calls of a model over HTTP, and what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from app.engine.errors import ModelError
from app.engine.messages import Message, Role
from app.engine.model import ModelClient, ModelEvent, ModelPolicies, ModelRequest, ModelResponse
from app.engine.usage import Spend
from app.llm.factory import ModelConfig, build_model_client
from app.llm.providers import OpenAIServer, Provider
from tests.model_server import ModelServer

_Event = TypeVar("_Event")

ONCE = ModelPolicies(max_attempts=1)


def a_request(text: str = "Hi", model: str = "openai/gpt-4o", **more: Any) -> ModelRequest:
    """One try of a call, unless `policies` say otherwise."""
    return ModelRequest(model, [Message(Role.USER, text)], **{"policies": ONCE, **more})


def a_provider(server: ModelServer, **more: Any) -> Provider:
    """A provider whose models that server has."""
    return Provider(OpenAIServer(server.base_url, "sk-1"), **more)


@asynccontextmanager
async def a_client(providers: dict[str, Provider], **more: Any) -> AsyncIterator[ModelClient]:
    """A whole client of those providers; it waits for nothing between two tries."""

    async def at_once(_: float) -> None:
        await asyncio.sleep(0)

    client = build_model_client(ModelConfig(providers=providers), **{"sleep": at_once, "uniform": lambda: 0.0, **more})
    try:
        yield client
    finally:
        await client.aclose()


async def events_of(client: ModelClient, request: ModelRequest) -> list[ModelEvent]:
    return [event async for event in client.stream(request)]


async def answer_of(client: ModelClient, request: ModelRequest) -> ModelResponse:
    last = (await events_of(client, request))[-1]
    assert isinstance(last, ModelResponse)
    return last


async def failure_of(client: ModelClient, request: ModelRequest) -> ModelError:
    """The error of a call that has to fail; what came before it is in its `events`."""
    try:
        answer = await answer_of(client, request)
    except ModelError as error:
        return error
    raise AssertionError(f"the call was answered: {answer}")


async def begun(client: ModelClient, request: ModelRequest) -> asyncio.Task[list[ModelEvent]]:
    """A call that is under way in a task of its own."""
    task = asyncio.create_task(events_of(client, request))
    await asyncio.sleep(0)
    return task


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def only(events: list[ModelEvent], kind: type[_Event]) -> list[_Event]:
    return [event for event in events if isinstance(event, kind)]


def spent(events: list[ModelEvent]) -> list[tuple[int, int]]:
    """Tokens in and out of each `Spend`."""
    return [(spend.usage.input_tokens, spend.usage.output_tokens) for spend in only(events, Spend)]
