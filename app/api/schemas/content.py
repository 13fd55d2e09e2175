"""Messages as callers write them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema

from app.api.schemas.fields import RequestModel
from app.engine.messages import Content, ContentPart, ImagePart, Message, Role, TextPart

_IMAGE_URL = r"^(https?://[^\s/?#]+[^\s]*|data:image/[A-Za-z0-9.+-]+;base64,[A-Za-z0-9+/]+={0,2})$"


def _image_url(url: str) -> str:
    # Some clients of providers would read a file: URL from this machine's disk.
    if re.fullmatch(_IMAGE_URL, url) is None:
        raise ValueError("should be an https:, http: or data:image/...;base64, URL")
    return url


class TextContent(RequestModel):
    type: Literal["text"]
    text: str


class ImageUrl(RequestModel):
    url: Annotated[str, AfterValidator(_image_url), WithJsonSchema({"type": "string", "pattern": _IMAGE_URL})] = Field(
        examples=["https://example.com/cat.png"],
        description="Where the model finds the image (https:, http:), or the image itself (data:image/png;base64,...).",
    )


class ImageContent(RequestModel):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextContent | ImageContent, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1)]


def _form(value: object) -> str:
    # Whatever is no list is validated as a string, so that there is one complaint and not one for each form.
    return "list" if isinstance(value, list) else "string"


MessageContent = Annotated[
    Annotated[str, Tag("string")] | Annotated[Parts, Tag("list")],
    Discriminator(_form),
]


class InputMessage(RequestModel):
    """One message of a run's input."""

    role: Literal["user", "system"]
    content: MessageContent

    def message(self) -> Message:
        return Message(Role(self.role), content_of(self.content))


RunInput = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[InputMessage], Field(min_length=1), Tag("list")],
    Discriminator(_form),
    Field(description="A string is one user message.", examples=["What is the weather in Bern?"]),
]


def content_of(content: str | list[Part]) -> Content:
    """The engine's form of what a caller wrote."""
    return content if isinstance(content, str) else [_part(part) for part in content]


def messages_of(given: str | list[InputMessage]) -> tuple[Message, ...]:
    """A run's input as messages."""
    if isinstance(given, str):
        return (Message(Role.USER, given),)
    return tuple(each.message() for each in given)


def _part(part: TextContent | ImageContent) -> ContentPart:
    if isinstance(part, TextContent):
        return TextPart(type="text", text=part.text)
    return ImagePart(type="image_url", image_url={"url": part.image_url.url})
