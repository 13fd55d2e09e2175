"""Providers' own wire formats through litellm: Gemini's and Ollama's, and Anthropic's for those who reach it so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import WarningCode
from app.engine.messages import Message, Reasoning, Role, ToolCall
from app.engine.model import (
    FinishReason,
    ModelEvent,
    ModelNotice,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    TextDelta,
)
from app.engine.tools import ToolSpec
from app.engine.usage import Usage
from app.llm.litellm_client import LiteLLMClient
from app.llm.priced import PricedClient
from tests.model_server import ModelServer, Reply
from tests.model_server.anthropic import AnthropicReply, anthropic_server
from tests.model_server.gemini import GeminiReply, gemini_server
from tests.model_server.ollama import OllamaReply, ollama_server

# What litellm and Pydantic warn each other of is not ours to mend. They do so while litellm builds its models, on their
# first use in a process: made an error, it would fail whichever of these tests comes first there.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

TOOLS = (ToolSpec("add", "adds", {"type": "object", "properties": {"x": {"type": "integer"}}}),)
PICTURE = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@dataclass(frozen=True)
class Format:
    """A wire format, and how litellm is told of a server that speaks it.

    Args:
        overflow: how the provider says that a request is too long.
        cut: the finish reason of an answer that was cut off.
        broken: what comes in a stream in place of more.
    """

    model: str
    server: Callable[[], ModelServer]
    reply: type[Reply]
    address: str
    path: str
    overflow: str
    cut: str
    broken: dict[str, Any]


FORMATS = {
    "gemini": Format(
        "gemini/gemini-2.5-flash",
        gemini_server,
        GeminiReply,
        "GEMINI_API_BASE",
        "/v1beta",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "MAX_TOKENS",
        {"error": {"code": 503, "message": "broken", "status": "UNAVAILABLE"}},
    ),
    "ollama": Format(
        "ollama/nobody-knows",
        ollama_server,
        OllamaReply,
        "OLLAMA_API_BASE",
        "",
        "the input length exceeds the context length",
        "length",
        {"error": "broken"},
    ),
    "anthropic": Format(
        "anthropic/claude-sonnet-4-5",
        anthropic_server,
        AnthropicReply,
        "ANTHROPIC_API_BASE",
        "",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "max_tokens",
        {"type": "error", "error": {"type": "overloaded_error", "message": "broken"}},
    ),
}


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


@pytest.fixture
async def server(form: Format, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelServer]:
    async with form.server() as server:
        monkeypatch.setenv(form.address, server.root_url + form.path)
        monkeypatch.setenv("GEMINI_API_KEY", "sk-not-to-be-seen")
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-not-to-be-seen")
        yield server


@pytest.fixture
async def client() -> AsyncIterator[LiteLLMClient]:
    client = LiteLLMClient()
    yield client
    await client.aclose()


def _request(form: Format, *messages: Message, **more: Any) -> ModelRequest:
    return ModelRequest(form.model, messages or [Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Hi")], **more)


async def _events(client: LiteLLMClient | PricedClient, request: ModelRequest) -> list[ModelEvent]:
    return [event async for event in client.stream(request)]


async def _answer(client: LiteLLMClient | PricedClient, request: ModelRequest) -> ModelResponse:
    last = (await _events(client, request))[-1]
    assert isinstance(last, ModelResponse)
    return last


async def _failure(client: LiteLLMClient, request: ModelRequest) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await _events(client, request)
    return caught.value


async def test_text_thoughts_and_usage(form: Format, server: ModelServer, client: LiteLLMClient) -> None:
    server.script([form.reply(text="Grüße 👋", reasoning=["hm"])])
    *deltas, response = await _events(client, _request(form))
    assert isinstance(response, ModelResponse)
    assert deltas == [ReasoningDelta("hm"), TextDelta("Grüße "), TextDelta("👋")]
    assert (response.text, response.reasoning) == ("Grüße 👋", "hm")
    assert (response.finish_reason, response.usage) == (FinishReason.STOP, Usage(1, 11, 7))
    assert (response.provider, response.usage_estimated) == (form.model.partition("/")[0], False)


async def test_calls_with_ids_and_arguments(form: Format, server: ModelServer, client: LiteLLMClient) -> None:
    calls = [{"name": "add", "arguments": {"x": 1}}, {"name": "add", "arguments": {}}]
    server.script([form.reply(text="", tool_calls=calls)])
    response = await _answer(client, _request(form, tools=TOOLS))
    assert response.finish_reason is FinishReason.TOOL_CALLS
    assert [(call.name, call.arguments.replace(" ", "")) for call in response.tool_calls] == [
        ("add", '{"x":1}'),
        ("add", "{}"),
    ]
    assert len({call.id for call in response.tool_calls if call.id}) == 2


async def test_the_price(form: Format, server: ModelServer, client: LiteLLMClient) -> None:
    prices = {
        "gemini": Decimal("0.0000208"),  # 11 x 0.30 + 7 x 2.50 millionths
        "anthropic": Decimal("0.000138"),  # 11 x 3 + 7 x 15
        "ollama": None,
    }
    response = await _answer(PricedClient(client), _request(form))
    assert response.cost_usd == prices[form.model.partition("/")[0]]


async def test_an_answer_without_usage_is_estimated_and_said_to_be(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    """Guard: `disable_token_counter`, without which litellm counts by some tokenizer and does not say so."""
    server.script([form.reply(usage=None)])
    assert (await _answer(client, _request(form))).usage_estimated


async def test_an_answer_that_was_cut_off(form: Format, server: ModelServer, client: LiteLLMClient) -> None:
    server.script([form.reply(finish_reason=form.cut)])
    assert (await _answer(client, _request(form))).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ModelErrorCode.INVALID_REQUEST),
        (401, ModelErrorCode.AUTHENTICATION),
        (404, ModelErrorCode.MODEL_NOT_FOUND),
        (429, ModelErrorCode.RATE_LIMITED),
        (500, ModelErrorCode.SERVER_ERROR),
        (503, ModelErrorCode.SERVER_ERROR),
    ],
)
async def test_an_error_has_its_class_and_the_providers_words(
    form: Format, server: ModelServer, client: LiteLLMClient, status: int, code: ModelErrorCode
) -> None:
    server.script([form.reply.error(status, "said so", headers={"Retry-After": "7"})])
    error = await _failure(client, _request(form))
    assert (error.code, error.status, error.retry_after_s) == (code, status, 7.0)
    assert error.message == f"{form.model.partition('/')[0]}: said so"


async def test_a_request_that_is_too_long(form: Format, server: ModelServer, client: LiteLLMClient) -> None:
    server.script([form.reply.error(400, form.overflow)])
    assert (await _failure(client, _request(form))).code is ModelErrorCode.CONTEXT_OVERFLOW


async def test_an_error_in_a_stream_can_be_tried_again(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    """Guard: `_keep_from_asking`, without which litellm asks Ollama for the model while nothing else can run."""
    model = form.model.partition("/")[2]
    begun = [piece.decode() for piece in form.reply(text="Hi").pieces(model)[:1]]
    server.script([form.reply(events=[*begun, form.broken])])
    error = await _failure(client, _request(form))
    assert (error.code, error.retryable) == (ModelErrorCode.SERVER_ERROR, True)
    assert "broken" in error.message


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_breaks(form: Format, server: ModelServer, client: LiteLLMClient, reset: bool) -> None:
    server.script([form.reply(text="a b c d e", cut_after=2, reset=reset)])
    assert (await _failure(client, _request(form))).code is ModelErrorCode.CONNECTION


async def test_cancelling_the_reader_closes_the_connection(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    server.script([form.reply(text="Hi", finish_reason=None, done=False, hold=True)])
    task = asyncio.create_task(_events(client, _request(form)))
    await server.until(lambda server: server.open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda server: server.aborted == 1 and server.open == 0)


async def test_an_image_reaches_the_model_in_its_own_form(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    image = Message(Role.USER, [{"type": "image_url", "image_url": {"url": PICTURE}}])
    await _answer(client, _request(form, image))
    body = server.requests[-1].body
    sent = {
        "gemini": lambda: next(p for p in body["contents"][0]["parts"] if "inline_data" in p)["inline_data"]["data"],
        "ollama": lambda: body["messages"][0]["images"][0],
        "anthropic": lambda: body["messages"][0]["content"][0]["source"]["data"],
    }
    assert sent[form.model.partition("/")[0]]() == "iVBORw0KGgo="


async def test_a_schema_goes_the_providers_own_way(form: Format, server: ModelServer, client: LiteLLMClient) -> None:
    await _answer(client, _request(form, response_schema=SCHEMA))
    body = server.requests[-1].body
    sent = {
        "gemini": lambda: body["generationConfig"]["response_json_schema"],
        "ollama": lambda: body["format"],
        "anthropic": lambda: (body.get("output_config", {}).get("format") or body["output_format"])["schema"],
    }
    assert sent[form.model.partition("/")[0]]()["properties"] == SCHEMA["properties"]


@pytest.mark.parametrize("form", ["gemini"], indirect=True)
async def test_the_signature_of_a_call_is_no_part_of_its_id_and_comes_back_with_it(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    server.script([GeminiReply(text="", tool_calls=[{"name": "add", "arguments": {"x": 1}}], signature="c2ln")])
    first = await _answer(client, _request(form, tools=TOOLS))
    call = first.tool_calls[0]
    assert "c2ln" not in call.id
    messages = [
        Message(Role.USER, "Hi"),
        Message(Role.ASSISTANT, "", first.tool_calls, kept=first.kept),
        Message(Role.TOOL, "1", tool_call_id=call.id),
    ]
    await _answer(client, _request(form, *messages, tools=TOOLS))
    assert server.requests[-1].body["contents"][1]["parts"] == [
        {"function_call": {"name": "add", "args": {"x": 1}}, "thoughtSignature": "c2ln"}
    ]


@pytest.mark.parametrize("form", ["gemini"], indirect=True)
async def test_google_says_in_the_body_how_long_to_wait(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    server.script([GeminiReply.error(429, "slow down", code="34s")])
    assert (await _failure(client, _request(form))).retry_after_s == 34.0


@pytest.mark.parametrize("form", ["gemini"], indirect=True)
async def test_a_filtered_answer(form: Format, server: ModelServer, client: LiteLLMClient) -> None:
    server.script([GeminiReply(finish_reason="SAFETY")])
    assert (await _answer(client, _request(form))).finish_reason is FinishReason.CONTENT_FILTER


@pytest.mark.parametrize("form", ["gemini"], indirect=True)
async def test_litellm_fetches_no_image_from_an_address_that_is_not_public(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    image = Message(Role.USER, [{"type": "image_url", "image_url": {"url": server.root_url + "/secret.png"}}])
    error = await _failure(client, _request(form, image))
    assert error.code is ModelErrorCode.INVALID_REQUEST
    assert "Unable to fetch image" in error.message
    assert not server.requests


@pytest.mark.parametrize("form", ["anthropic"], indirect=True)
async def test_signed_thoughts_come_back_through_litellm(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    call = {"id": "toolu_a", "name": "add", "arguments": {"x": 1}}
    server.script([AnthropicReply(text="", reasoning=["I add"], tool_calls=[call])])
    settings = {"reasoning_effort": "low", "max_tokens": 4000}
    first = await _answer(client, _request(form, tools=TOOLS, settings=settings))
    thought = {"type": "thinking", "thinking": "I add", "signature": "c2lnbmVk"}
    assert first.kept == Reasoning("anthropic", (thought,))
    messages = [
        Message(Role.USER, "Hi"),
        Message(Role.ASSISTANT, "", first.tool_calls, kept=first.kept),
        Message(Role.TOOL, "1", tool_call_id="toolu_a"),
    ]
    await _answer(client, _request(form, *messages, tools=TOOLS, settings=settings))
    assert server.requests[-1].body["messages"][1]["content"][0] == thought


@pytest.mark.parametrize("form", ["ollama"], indirect=True)
async def test_a_setting_that_a_provider_does_not_have_is_left_out_and_said(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    settings = {"temperature": 0.5, "parallel_tool_calls": False}
    events = await _events(client, _request(form, tools=TOOLS, settings=settings))
    notices = [event for event in events if isinstance(event, ModelNotice)]
    assert [(n.code, n.data["setting"]) for n in notices] == [(WarningCode.SETTING_IGNORED, "parallel_tool_calls")]
    assert server.requests[-1].body["options"] == {"temperature": 0.5}


@pytest.mark.parametrize("form", ["ollama"], indirect=True)
async def test_calls_and_results_reach_ollama_as_calls_and_results(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    messages = [
        Message(Role.USER, "Hi"),
        Message(Role.ASSISTANT, "", (ToolCall("a", "add", '{"x":1}'),)),
        Message(Role.TOOL, "1", tool_call_id="a"),
    ]
    await _answer(client, _request(form, *messages, tools=TOOLS))
    received = server.requests[-1]
    assert received.path == "/api/chat"
    assert [message["role"] for message in received.body["messages"]] == ["user", "assistant", "tool"]
    assert received.body["messages"][1]["tool_calls"] == [{"function": {"name": "add", "arguments": {"x": 1}}}]
    assert received.body["tools"][0]["function"]["name"] == "add"


@pytest.mark.parametrize("form", ["ollama", "anthropic"], indirect=True)
async def test_an_answer_that_never_says_why_it_stopped_is_not_taken_for_a_whole_one(
    form: Format, server: ModelServer, client: LiteLLMClient
) -> None:
    """Guard: `_ended_early`; litellm itself ends such an answer with "stop"."""
    server.script([form.reply(text="Half", finish_reason=None, done=False)])
    assert (await _failure(client, _request(form))).code is ModelErrorCode.INVALID_RESPONSE
