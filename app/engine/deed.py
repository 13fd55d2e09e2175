"""What policy judges: a thing that a run is about to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class PolicySubject(StrEnum):
    """What is judged."""

    MODEL_CALL = "model_call"
    TOOL_CALL = "tool_call"
    SUBAGENT_CALL = "subagent_call"


@dataclass(frozen=True, slots=True)
class Deed:
    """What is to be judged. `arguments` are the final ones, parsed; None for model calls."""

    subject: PolicySubject
    agent_name: str
    context: Mapping[str, Any]
    tool_name: str | None = None
    arguments: Any = None
