"""What is known of a model beforehand, from litellm's bundled table: how long its answers may be, what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.llm.json_values import as_count

_SUPPORTS = "supports_"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the table says of one model.

    Args:
        known: whether the model stands in the table.
        max_output_tokens: the longest answer in tokens; 0 where the table does not say.
        able: the names of what the model supports, such as `response_schema` or `adaptive_thinking`.
        unable: of what it does not support, where the table says so.
    """

    known: bool = False
    max_output_tokens: int = 0
    able: frozenset[str] = frozenset()
    unable: frozenset[str] = frozenset()

    def may(self, ability: str) -> bool:
        """Whether the model has an ability, or nothing is known of the model."""
        return ability in self.able or not self.known


UNKNOWN = ModelFacts()


def facts_in(entry: Mapping[str, Any]) -> ModelFacts:
    """The facts in one entry of the table."""
    supports = {name.removeprefix(_SUPPORTS): value for name, value in entry.items() if name.startswith(_SUPPORTS)}
    always_thinks = {"not_to_think"} if entry.get("thinking_always_on") is True else set[str]()
    return ModelFacts(
        known=True,
        max_output_tokens=as_count(entry.get("max_output_tokens")),
        able=frozenset(name for name, value in supports.items() if value is True),
        unable=frozenset({name for name, value in supports.items() if value is False} | always_thinks),
    )
