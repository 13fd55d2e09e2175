"""Model clients put together: the one place that knows which there are, and how policies wrap them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.engine.memories import Embedder
from app.engine.model import ModelClient
from app.llm.anthropic.client import ANTHROPIC_BASE_URL, AnthropicClient
from app.llm.cache import CacheClient, ModelCache
from app.llm.circuit_breaker import CircuitBreakerClient
from app.llm.coalescing import CoalescingClient
from app.llm.demo import DEMO_MODELS, DemoClient
from app.llm.embedding_policies import RestingEmbedder, RetryingEmbedder
from app.llm.embeddings import OpenAIEmbeddings
from app.llm.fallback import FallbackClient
from app.llm.hedging import HedgingClient
from app.llm.litellm_client import LiteLLMClient
from app.llm.live_replicas import LiveReplicas
from app.llm.memory_cache import MemoryModelCache
from app.llm.metered import MeteredClient
from app.llm.model_names import OWN_PREFIXES, known_prefix, problem_with_prefix
from app.llm.openai_compatible import OpenAICompatibleClient
from app.llm.priced import PricedClient
from app.llm.providers import Provider
from app.llm.rate_limit import WINDOW_S, RateLimitClient
from app.llm.retry import RetryClient
from app.llm.router import ModelRouter
from app.llm.scripted import ScriptFiles
from app.llm.timeouts import TimeoutClient
from app.llm.traced import TracedClient
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Tracing

__all__ = [
    "EmbeddingConfig",
    "ModelConfig",
    "build_embedder",
    "build_model_client",
    "check_model_name",
    "known_prefix",
    "model_clients",
]

OPENAI_BASE_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the service's settings say about models.

    Args:
        openai_api_key: key of the native client; None for servers that want none.
        openai_base_url: where `openai/…` goes, up to and including the version.
        anthropic_api_key: key of the native client for `anthropic/…`; None for servers that want none.
        anthropic_base_url: where `anthropic/…` goes, without the version.
        anthropic_prompt_caching: see `AnthropicClient`.
        scripts_dir: folder of `scripted/NAME` files; None for no scripted models.
        demo_word_delay_s: seconds between two words of `demo/…`.
        providers: what the operator says about providers, by the prefix of their models' names.
    """

    openai_api_key: str | None = field(default=None, repr=False)
    openai_base_url: str = OPENAI_BASE_URL
    anthropic_api_key: str | None = field(default=None, repr=False)
    anthropic_base_url: str = ANTHROPIC_BASE_URL
    anthropic_prompt_caching: bool = True
    scripts_dir: Path | None = None
    demo_word_delay_s: float = 0.015
    providers: Mapping[str, Provider] = field(default_factory=dict[str, Provider])


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """What the settings say about embeddings.

    Args:
        model: sent as it is; empty for none.
        base_url: up to and including the version; empty for OpenAI's own.
        api_key: empty for servers that want none.
    """

    model: str
    base_url: str
    api_key: str = field(repr=False)


def build_embedder(config: EmbeddingConfig) -> Embedder | None:
    """What embeds memories, with every policy around it; None where there is no model for that."""
    if not config.model:
        return None
    client = OpenAIEmbeddings(config.base_url or OPENAI_BASE_URL, config.model, config.api_key or None)
    return RestingEmbedder(RetryingEmbedder(client))


def build_model_client(
    config: ModelConfig,
    *,
    cache: ModelCache | None = None,
    replicas: LiveReplicas | None = None,
    metrics: Metrics | None = None,
    tracing: Tracing | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    uniform: Callable[[], float] = random.random,
    rate_window_s: float = WINDOW_S,
) -> ModelClient:
    """The client that a runner calls: every prefix, with every policy around it.

    What the policies know (open circuits, calls under way, what was asked for in the last minute) is shared by all who
    call this client.

    Args:
        cache: where answers are kept for agents that want it; None for the client's own memory.
        replicas: who shares the providers' limits; None if nobody else does.
        metrics: where calls are counted; None for nowhere.
        tracing: what makes spans of calls that are counted; None for nothing.
        sleep: waits between two tries, and in offline models.
        uniform: a random number from 0 up to 1, for the jitter of those waits.
        rate_window_s: how long the minute of the providers' limits is.
    """
    providers = config.providers
    # From the innermost to the outermost. Where a request does not use a policy, its client hands the stream of the
    # next one on as it is.
    client: ModelClient = TimeoutClient(_router(config, sleep))
    # What a call costs hangs on what came before it broke off or timed out.
    client = PricedClient(client)
    if metrics is not None:
        # Inside of the retry: a provider that refuses every other call shows, and waiting is not its latency.
        client = MeteredClient(client, metrics) if tracing is None else TracedClient(client, metrics, tracing)
    # Outside of the timeouts: waiting for a turn is not the provider's silence.
    limits = {name: provider.rate_limit for name, provider in providers.items()}
    client = RateLimitClient(client, limits, replicas or LiveReplicas(), window_s=rate_window_s)
    circuits = {name: provider.circuit for name, provider in providers.items()}
    client = CircuitBreakerClient(client, circuits, metrics=metrics)
    client = HedgingClient(client)
    client = RetryClient(client, sleep=sleep, uniform=uniform)
    client = FallbackClient(client)
    client = CoalescingClient(client)
    return CacheClient(client, cache or MemoryModelCache())


def check_model_name(model: str, config: ModelConfig) -> str | None:
    """Why an agent with this model cannot be saved, for the person who wrote it; None if it can.

    A missing key is no reason: it may be set by the time the agent runs.
    """
    problem = problem_with_prefix(model, config.providers)
    if problem is not None:
        return problem
    if model.startswith("scripted/"):
        return ScriptFiles(config.scripts_dir).problem_with(model)
    if model.startswith("demo/") and model not in DEMO_MODELS:
        return f"there is no {model}; there are {', '.join(DEMO_MODELS)}"
    return None


def model_clients(config: ModelConfig) -> tuple[str, ...]:
    """The clients that can answer under this configuration, for the service's description of itself: those of the
    operator's own servers by the prefix of their models' names."""
    scripted = ("scripted",) if config.scripts_dir is not None else ()
    own = sorted(name for name, provider in config.providers.items() if provider.server and name not in OWN_PREFIXES)
    return ("openai", "anthropic", *own, *scripted, "demo", "litellm")


def _router(config: ModelConfig, sleep: Callable[[float], Awaitable[None]]) -> ModelRouter:
    clients: dict[str, ModelClient] = {
        "openai": OpenAICompatibleClient(config.openai_base_url or OPENAI_BASE_URL, config.openai_api_key or None),
        "anthropic": AnthropicClient(
            config.anthropic_base_url or ANTHROPIC_BASE_URL,
            config.anthropic_api_key or None,
            caching=config.anthropic_prompt_caching,
        ),
        "scripted": ScriptFiles(config.scripts_dir, sleep=sleep),
        "demo": DemoClient(word_delay_s=config.demo_word_delay_s, sleep=sleep),
    }
    for name, provider in config.providers.items():
        server = provider.server
        if server is not None and server.base_url is not None:
            # Not the key of OPENAI_API_KEY, which is for another server.
            clients[name] = OpenAICompatibleClient(server.base_url, server.api_key, provider=name)
        elif server is not None and server.api_key is not None:
            clients[name] = OpenAICompatibleClient(config.openai_base_url or OPENAI_BASE_URL, server.api_key)
    return ModelRouter(clients, otherwise=LiteLLMClient())
