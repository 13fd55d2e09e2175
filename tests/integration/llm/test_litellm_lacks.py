"""litellm itself, without what it needs to call a provider: nothing is sent, and nothing of this machine is told."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import ModelRequest
from app.llm.litellm_client import LiteLLMClient
from tests.model_server import ModelServer, Reply

# See test_litellm_client.py.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

_SET = ("_API_KEY", "_API_BASE", "_PROJECT", "_CREDENTIALS")
_NOT_HERE = ("Traceback", "site-packages", "File ", "object at 0x", "ssl:")


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiteLLMClient]:
    for name in os.environ:
        if name.endswith(_SET) or name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = LiteLLMClient()
    yield client
    await client.aclose()


async def _refusal(client: LiteLLMClient, model: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        _ = [event async for event in client.stream(ModelRequest(model, [Message(Role.USER, "Hi")]))]
    error = caught.value
    assert not any(text in error.message for text in _NOT_HERE)
    return error


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("gemini/gemini-2.0-flash", "GOOGLE_API_KEY or GEMINI_API_KEY"),
        ("azure/gpt-4o", "AZURE_API_BASE, AZURE_API_VERSION, AZURE_API_KEY"),
        ("bedrock/anthropic.claude-3-haiku-20240307-v1:0", "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"),
        ("sagemaker/endpoint", "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"),
        ("perplexity/sonar", "PERPLEXITYAI_API_KEY"),
        ("fireworks_ai/llama", "FIREWORKS_AI_API_KEY"),
        ("github/gpt-4o", "GITHUB_API_KEY"),
        ("cloudflare/llama", "CLOUDFLARE_API_KEY, CLOUDFLARE_API_BASE"),
        ("databricks/dbrx", "DATABRICKS_API_BASE, DATABRICKS_API_KEY"),
        ("snowflake/arctic", "SNOWFLAKE_JWT, SNOWFLAKE_ACCOUNT_ID"),
        ("text-completion-openai/davinci", "OPENAI_API_KEY"),
    ],
)
async def test_a_missing_key_is_not_tried_again_and_the_variable_is_named(
    client: LiteLLMClient, model: str, names: str
) -> None:
    error = await _refusal(client, model)
    assert (error.code, error.retryable, error.status) == (ModelErrorCode.AUTHENTICATION, False, None)
    assert error.message == f"{model.partition('/')[0]}: no credentials; not in the environment: {names}"


async def test_a_missing_package_is_named_and_not_tried_again(client: LiteLLMClient) -> None:
    error = await _refusal(client, "petals/x")
    assert (error.code, error.retryable) == (ModelErrorCode.MODEL_NOT_FOUND, False)
    assert error.message.endswith("is not installed: pip install petals")


async def test_a_missing_package_of_google_is_named_as_it_is_installed(client: LiteLLMClient) -> None:
    error = await _refusal(client, "vertex_ai/gemini-2.0-flash")
    assert (error.code, error.retryable) == (ModelErrorCode.MODEL_NOT_FOUND, False)
    assert error.message.endswith("is not installed: pip install google-auth")


async def test_a_missing_address_is_not_tried_again(client: LiteLLMClient) -> None:
    error = await _refusal(client, "azure_ai/x")
    assert (error.code, error.retryable) == (ModelErrorCode.INVALID_REQUEST, False)
    assert error.message == "azure_ai: no address; not in the environment: AZURE_AI_API_BASE, AZURE_AI_API_KEY"


async def test_a_provider_that_refuses_a_call_without_a_key_is_not_all_that_is_told(
    client: LiteLLMClient, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_BASE", server.base_url)
    server.script([Reply.error(401, "who are you?"), Reply.error(401, "you again?")])
    error = await _refusal(client, "groq/llama3")
    assert (error.code, error.status) == (ModelErrorCode.AUTHENTICATION, 401)
    assert error.message == "groq: who are you?; not in the environment: GROQ_API_KEY"
    monkeypatch.setenv("GROQ_API_KEY", "sk-wrong")
    assert (await _refusal(client, "groq/llama3")).message == "groq: you again?"


async def test_a_server_that_cannot_be_reached_is_tried_again(
    client: LiteLLMClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_BASE", "https://127.0.0.1:1/v1")
    error = await _refusal(client, "groq/llama3")
    assert (error.code, error.retryable) == (ModelErrorCode.CONNECTION, True)
    assert error.message.startswith("groq: Cannot connect to host 127.0.0.1:1 [")


async def test_a_server_that_breaks_in_its_code_is_tried_again(
    client: LiteLLMClient, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_BASE", server.base_url)
    server.script([Reply.error(500, "No module named 'numpy'\nTraceback (most recent call last):\n  File x.py")])
    error = await _refusal(client, "groq/llama3")
    assert (error.code, error.message) == (ModelErrorCode.SERVER_ERROR, "groq: No module named 'numpy'")


async def test_litellm_writes_no_lines_of_its_own(client: LiteLLMClient, capfd: pytest.CaptureFixture[str]) -> None:
    await _refusal(client, "gemini/gemini-2.0-flash")
    logging.getLogger("LiteLLM").warning("told by whoever listens")
    logging.getLogger("LiteLLM Router").warning("told by whoever listens")
    assert capfd.readouterr() == ("", "")
