"""Messages as callers write them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from app.api.schemas.fields import RequestModel
from app.engine.content import MessageContent, content_of, form_of
from app.engine.messages import Message, Role


class InputMessage(RequestModel):
    """One message of a run's input."""

    role: Literal["user", "system"]
    content: MessageContent

    def message(self) -> Message:
        return Message(Role(self.role), content_of(self.content))


RunInput = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[InputMessage], Field(min_length=1), Tag("list")],
    Discriminator(form_of),
    Field(description="A string is one user message.", examples=["What is the weather in Bern?"]),
]


def messages_of(given: str | list[InputMessage]) -> tuple[Message, ...]:
    """A run's input as messages."""
    if isinstance(given, str):
        return (Message(Role.USER, given),)
    return tuple(each.message() for each in given)
