from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.llm.factory import ModelConfig, check_model_name, known_prefix, model_clients
from app.llm.model_names import litellm_prefixes

NOTHING = ModelConfig()


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-4o-mini",
        "openai/any/name/at/all",
        "demo/assistant",
        "anthropic/claude-sonnet-4-5",
        "gemini/gemini-2.5-flash",
        "bedrock/anthropic.claude-3",
        "vertex_ai/gemini-2.5-pro",
        "azure/my-deployment",
        "hosted_vllm/llama",
        "openrouter/openai/gpt-4o",
        "ollama/llama3",
        "groq/x",
        "mistral/x",
        "deepseek/x",
        "together_ai/x",
        "fireworks_ai/x",
        "xai/x",
        "cohere/x",
        "litellm_proxy/x",
        "huggingface/x",
        "watsonx/x",
    ],
)
def test_known_models_are_accepted_without_any_key(model: str) -> None:
    assert known_prefix(model)
    assert check_model_name(model, NOTHING) is None


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("gpt-4o-mini", "no provider prefix"),
        ("", "no provider prefix"),
        ("/x", "no provider prefix"),
        ("openai/", "no name after its prefix"),
        ("antropic/claude", "did you mean anthropic/claude"),
        ("vertex_ai-language-models/x", "unknown provider"),
        ("nobody-has-this/x", "unknown provider"),
        ("demo/other", "demo/assistant, demo/echo"),
        ("scripted/x", "no folder of scripts is set"),
    ],
)
def test_a_model_that_cannot_work_is_refused_with_the_reason(model: str, problem: str) -> None:
    assert problem in (check_model_name(model, NOTHING) or "")


def test_the_refusal_says_which_prefixes_there_are() -> None:
    problem = check_model_name("gpt-4o", NOTHING) or ""
    for prefix in ("openai/", "demo/", "scripted/", "litellm"):
        assert prefix in problem


def test_a_scripted_model_needs_its_file(tmp_path: Path) -> None:
    config = ModelConfig(scripts_dir=tmp_path)
    assert "there is no hello.yaml" in (check_model_name("scripted/hello", config) or "")
    (tmp_path / "hello.yaml").write_text("- txt: x", encoding="utf-8")
    assert "turns[0].txt" in (check_model_name("scripted/hello", config) or "")
    (tmp_path / "hello.yaml").write_text("- text: Hello.", encoding="utf-8")
    assert check_model_name("scripted/hello", config) is None


def test_the_clients_are_those_that_can_answer(tmp_path: Path) -> None:
    assert model_clients(NOTHING) == ("openai", "anthropic", "demo", "litellm")
    assert "scripted" in model_clients(ModelConfig(scripts_dir=tmp_path))


def test_the_key_is_not_in_the_configurations_text() -> None:
    assert "sk-secret" not in repr(ModelConfig(openai_api_key="sk-secret"))


def test_prefixes_hold_no_slash_and_no_family_of_models() -> None:
    assert len(litellm_prefixes()) > 90
    assert not [name for name in litellm_prefixes() if not name or "/" in name or name.endswith("models")]


def test_neither_the_factory_nor_the_check_of_a_name_imports_litellm() -> None:
    code = (
        "import sys; from app.llm.factory import *; from app.llm.pricing import bundled_prices;"
        "build_model_client(ModelConfig()); check_model_name('anthropic/x', ModelConfig()); bundled_prices();"
        "sys.exit('litellm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=60)
