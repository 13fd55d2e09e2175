"""Model clients put together: the one place that knows which there are, and how policies wrap them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.engine.model import ModelClient
from app.llm.demo import DEMO_MODELS, DemoClient
from app.llm.litellm_client import LiteLLMClient
from app.llm.metered import MeteredClient
from app.llm.model_names import known_prefix, problem_with_prefix
from app.llm.openai_compatible import OpenAICompatibleClient
from app.llm.pricing import PricedClient
from app.llm.retry import RetryClient
from app.llm.router import ModelRouter
from app.llm.scripted import ScriptFiles
from app.llm.timeouts import TimeoutClient
from app.llm.traced import TracedClient
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Tracing

__all__ = ["ModelConfig", "build_model_client", "check_model_name", "known_prefix", "model_clients"]

OPENAI_BASE_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the service's settings say about models.

    Args:
        openai_api_key: key of the native client; None for servers that want none.
        openai_base_url: where `openai/…` goes, up to and including the version.
        scripts_dir: folder of `scripted/NAME` files; None for no scripted models.
        demo_word_delay_s: seconds between two words of `demo/…`.
    """

    openai_api_key: str | None = field(default=None, repr=False)
    openai_base_url: str = OPENAI_BASE_URL
    scripts_dir: Path | None = None
    demo_word_delay_s: float = 0.015


def build_model_client(
    config: ModelConfig,
    *,
    metrics: Metrics | None = None,
    tracing: Tracing | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    uniform: Callable[[], float] = random.random,
) -> ModelClient:
    """The client that a runner calls: every prefix, with every policy around it.

    Args:
        metrics: where calls are counted; None for nowhere.
        tracing: what makes spans of calls that are counted; None for nothing.
        sleep: waits between two tries, and in offline models.
        uniform: a random number from 0 up to 1, for the jitter of those waits.
    """
    router = ModelRouter(
        {
            "openai": OpenAICompatibleClient(config.openai_base_url or OPENAI_BASE_URL, config.openai_api_key or None),
            "scripted": ScriptFiles(config.scripts_dir, sleep=sleep),
            "demo": DemoClient(word_delay_s=config.demo_word_delay_s, sleep=sleep),
        },
        otherwise=LiteLLMClient(),
    )
    # Outermost first: cache, coalescing, fallback chain, retry, circuit breaker, rate limit, timeout, client.
    # Of these exist retry and timeout. The price belongs to the client's own answer, so it is next to it.
    client: ModelClient = TimeoutClient(PricedClient(router))
    if metrics is not None:
        # Inside of the retry: a provider that refuses every other call shows, and waiting is not its latency.
        client = MeteredClient(client, metrics) if tracing is None else TracedClient(client, metrics, tracing)
    return RetryClient(client, sleep=sleep, uniform=uniform)


def check_model_name(model: str, config: ModelConfig) -> str | None:
    """Why an agent with this model cannot be saved, for the person who wrote it; None if it can.

    A missing key is no reason: it may be set by the time the agent runs.
    """
    problem = problem_with_prefix(model)
    if problem is not None:
        return problem
    if model.startswith("scripted/"):
        return ScriptFiles(config.scripts_dir).problem_with(model)
    if model.startswith("demo/") and model not in DEMO_MODELS:
        return f"there is no {model}; there are {', '.join(DEMO_MODELS)}"
    return None


def model_clients(config: ModelConfig) -> tuple[str, ...]:
    """The clients that can answer under this configuration, for the service's description of itself."""
    scripted = ("scripted",) if config.scripts_dir is not None else ()
    return ("openai", *scripted, "demo", "litellm")
