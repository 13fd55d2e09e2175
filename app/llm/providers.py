"""What the operator says about a provider."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.llm.circuit_breaker import CircuitLimits
from app.llm.rate_limit import RateLimit


@dataclass(frozen=True, slots=True)
class OpenAIServer:
    """A server that speaks OpenAI's chat completions.

    Args:
        base_url: up to and including the version, such as `http://127.0.0.1:8080/v1`; None for OpenAI's own.
        api_key: None for servers that want none.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider, the prefix of its models' names.

    Args:
        server: where its models are; None for the client that the prefix has by itself.
    """

    server: OpenAIServer | None = None
    rate_limit: RateLimit = field(default_factory=RateLimit)
    circuit: CircuitLimits = field(default_factory=CircuitLimits)
