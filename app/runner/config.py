"""What a runner needs besides agents."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from app.engine.limits import Limits


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """What a runner needs besides agents; what is None is read from the environment and `.env`.

    Args:
        scripts_dir: folder of `scripted/NAME` files.
        limits: in place of the defaults, for all agents that state none.
    """

    openai_api_key: str | None = field(default=None, repr=False)
    openai_base_url: str | None = None
    anthropic_api_key: str | None = field(default=None, repr=False)
    anthropic_base_url: str | None = None
    scripts_dir: Path | None = None
    max_concurrent_runs: int = 200
    limits: Limits = field(default_factory=Limits)
