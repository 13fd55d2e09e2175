"""The file of PROVIDERS_FILE: what it can say, and what it says of itself where it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.llm.circuit_breaker import CircuitLimits
from app.llm.factory import ModelConfig, check_model_name, model_clients
from app.llm.providers import OpenAIServer, Provider
from app.llm.providers_file import ProvidersFileError, read_providers
from app.llm.rate_limit import RateLimit

ENVIRONMENT = {"LLAMA_URL": "http://10.0.0.7:8080/v1/", "LLAMA_KEY": "sk-from-env", "EMPTY": ""}
EXAMPLE = Path(__file__).parents[3] / "examples" / "providers.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "providers.yaml"


def _problems(file: Path, text: str) -> list[str]:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ProvidersFileError) as error:
        read_providers(file, ENVIRONMENT)
    prefix = f"PROVIDERS_FILE: {file}: "
    lines = str(error.value).splitlines()
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


def test_servers_limits_and_circuit_breakers(file: Path) -> None:
    file.write_text(
        """
local:
  client: openai
  base_url: {env: LLAMA_URL}
  api_key: {env: LLAMA_KEY}
  requests_per_minute: 60
  tokens_per_minute: 90000
  rate_limit_wait_s: 5
  circuit_breaker: {failures: 2, open_s: 1.5}
openai:
  requests_per_minute: 500
anthropic:
  circuit_breaker: {open_s: 10}
groq:
  client: openai
  base_url: https://api.groq.com/openai/v1
  api_key: sk-here
""",
        encoding="utf-8",
    )
    assert read_providers(file, ENVIRONMENT) == {
        "local": Provider(
            OpenAIServer("http://10.0.0.7:8080/v1", "sk-from-env"), RateLimit(60, 90000, 5.0), CircuitLimits(2, 1.5)
        ),
        "openai": Provider(None, RateLimit(500)),
        "anthropic": Provider(None, circuit=CircuitLimits(5, 10.0)),
        "groq": Provider(OpenAIServer("https://api.groq.com/openai/v1", "sk-here")),
    }


def test_an_empty_file_declares_nothing(file: Path) -> None:
    file.write_text("# nothing yet\n", encoding="utf-8")
    assert read_providers(file, ENVIRONMENT) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("local: {client: openai}", "local.base_url: is needed, such as http://127.0.0.1:8080/v1"),
        ("local: {client: openai, base_url: host/v1}", "local.base_url: should be an http:// or https:// URL"),
        ("local: {client: openai, base_url: 'http://u:p@h/v1'}", "local.base_url: should be"),
        ("local: {client: openai, base_url: {env: NOPE}}", "local.base_url.env: NOPE is not in the environment, or"),
        (
            "local: {client: openai, base_url: 'http://h/v1', api_key: {env: EMPTY}}",
            "local.api_key.env: EMPTY is not in",
        ),
        (
            "local: {client: openai, base_url: 'http://h/v1', api_key: {env: sk-1}}",
            "local.api_key.env: the variable is not",
        ),
        (
            "local: {client: openai, base_url: 'http://h/v1', api_key: 12345}",
            "local.api_key: should be text (in quotes",
        ),
        (
            "local: {client: openai, base_url: 'http://h/v1', api_key: {env: 5}}",
            "local.api_key.env: should be a valid str",
        ),
        ("local: {client: openai, base_url: 'http://h/v1', api_key: 'a b'}", "local.api_key: should be visible ASCII"),
        ("local: {client: grpc, base_url: 'http://h/v1'}", "local.client: should be 'openai'"),
        ("local: {requests_per_minute: 5}", "local: local/ is no provider that is known"),
        ("openai: {api_key: sk-1}", "openai: base_url and api_key need client: openai"),
        (
            "anthropic: {base_url: 'http://h'}",
            "anthropic: has no base_url or api_key here: ANTHROPIC_BASE_URL and ANTHR",
        ),
        (
            "groq: {api_key: sk-1}",
            "groq: has no base_url or api_key here: litellm reads both from variables of its own",
        ),
        ("local: {base_url: 'http://h/v1'}", "local: base_url and api_key need client: openai"),
        ("openai: {requests_per_minute: 0}", "openai.requests_per_minute: should be greater than or equal to 1"),
        ("openai: {requests_per_minute: many}", "openai.requests_per_minute: should be a valid integer"),
        ("openai: {tokens_per_minute: -1}", "openai.tokens_per_minute: should be greater"),
        ("openai: {rate_limit_wait_s: .inf}", "openai.rate_limit_wait_s: should be a finite number"),
        ("openai: {circuit_breaker: {failures: 0}}", "openai.circuit_breaker.failures: should be greater"),
        ("openai: {circuit_breaker: {open: 5}}", "openai.circuit_breaker.open: there is no such setting; did you"),
        (
            "openai: {circuit_breakr: {}}",
            "openai.circuit_breakr: there is no such setting; did you mean circuit_breaker?",
        ),
        (
            "openai: {rpm: 5}",
            "openai.rpm: there is no such setting; there are: client, base_url, api_key, requests_per_",
        ),
        ("openai: 5", "openai: should have settings of its own"),
        ("openai: {}\nopenai: {}", "line 2: the same name a second time"),
        ("openai:\n  requests_per_minute: 5\n  requests_per_minute: 6", "line 3: the same name a second time"),
        ("demo: {requests_per_minute: 5}", "demo: demo/ answers offline"),
        ("a/b: {requests_per_minute: 5}", "a/b: a provider's name has up to 48 letters"),
        ("1: {requests_per_minute: 5}", "1: a provider's name has up to 48 letters"),
        ("- openai", "should hold providers by name, each with its settings"),
        ("openai: [", "is no YAML at line 1"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_place(file: Path, text: str, problem: str) -> None:
    (told,) = _problems(file, text)
    assert told.startswith(problem)


def test_all_problems_are_told_at_once_and_no_key(file: Path) -> None:
    told = _problems(file, "a: {client: openai, api_key: sk-secret}\nb: {requests_per_minute: 5}\nopenai: {rpm: 1}")
    assert [line.partition(":")[0] for line in told] == ["a.base_url", "b", "openai.rpm"]
    assert not any("sk-secret" in line for line in told)


def test_a_file_that_cannot_be_read_says_why(file: Path) -> None:
    with pytest.raises(ProvidersFileError, match="cannot be read: No such file"):
        read_providers(file, {})
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ProvidersFileError, match="no UTF-8"):
        read_providers(file, {})


def test_keys_stay_out_of_what_is_printed(file: Path) -> None:
    file.write_text("local: {client: openai, base_url: 'http://h/v1', api_key: sk-secret}", encoding="utf-8")
    assert "sk-secret" not in repr(ModelConfig(providers=read_providers(file, {})))


def test_declared_names_can_be_used_and_are_hinted_at() -> None:
    config = ModelConfig(providers={"local": Provider(OpenAIServer("http://h/v1")), "openai": Provider()})
    assert check_model_name("local/llama3", config) is None
    assert "did you mean local/llama3" in (check_model_name("locl/llama3", config) or "")
    assert "local/, demo/" in (check_model_name("nonsense", config) or "")
    assert check_model_name("local/llama3", ModelConfig()) is not None
    assert model_clients(config) == ("openai", "anthropic", "local", "demo", "litellm")


def test_the_example_can_be_used() -> None:
    read = read_providers(EXAMPLE, {"OPENAI_API_KEY": "sk-1", "LOCAL_API_KEY": "sk-2"})
    assert "local" in read
