"""Answers that must fit a JSON schema, and what the model is told of one that does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.engine.messages import Message, Role

MAX_REPAIRS = 2


@dataclass(frozen=True, slots=True)
class Fits:
    """The answer is `value`, which fits the schema."""

    value: Any


@dataclass(frozen=True, slots=True)
class Misfit:
    """The answer is no JSON, or does not fit; `problem` is written for the model, a line for each thing."""

    problem: str


class AnswerSchema(Protocol):
    """Holds answers against one schema."""

    def check(self, text: str) -> Fits | Misfit: ...


@dataclass(frozen=True, slots=True)
class Repair:
    """An answer that did not fit, to be shown to the model once more beside what is wrong with it.

    It is no part of the thread: what later runs see of this one is its answer.

    Args:
        turn: counted from 1; past `MAX_REPAIRS` the run ends.
        text, problem: empty once the model has gone on with tool calls instead.
    """

    turn: int
    text: str = ""
    problem: str = ""

    def messages(self) -> tuple[Message, ...]:
        """What stands at the end of the next model call."""
        if not self.problem:
            return ()
        told = f"This answer does not fit the required JSON schema:\n{self.problem}\nAnswer again, with the JSON alone."
        return Message(Role.ASSISTANT, self.text or "(nothing)"), Message(Role.USER, told)

    def as_dict(self) -> dict[str, Any]:
        return {"turn": self.turn, "text": self.text, "problem": self.problem}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Repair:
        return cls(data["turn"], data["text"], data["problem"])
