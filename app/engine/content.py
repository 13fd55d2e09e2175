"""Messages' content as callers write it, before it is the engine's own."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema

from app.engine.messages import Content, ContentPart, ImagePart, TextPart
from app.engine.model_settings import Data

_IMAGE_URL = r"^(https?://[^\s/?#]+[^\s]*|data:image/[A-Za-z0-9.+-]+;base64,[A-Za-z0-9+/]+={0,2})$"


def _image_url(url: str) -> str:
    # Some clients of providers would read a file: URL from this machine's disk.
    if re.fullmatch(_IMAGE_URL, url) is None:
        raise ValueError("should be an https:, http: or data:image/...;base64, URL")
    return url


class TextContent(Data):
    type: Literal["text"]
    text: str


class ImageUrl(Data):
    url: Annotated[str, AfterValidator(_image_url), WithJsonSchema({"type": "string", "pattern": _IMAGE_URL})] = Field(
        examples=["https://example.com/cat.png"],
        description="Where the model finds the image (https:, http:), or the image itself (data:image/png;base64,...).",
    )


class ImageContent(Data):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextContent | ImageContent, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1)]


def form_of(value: object) -> str:
    """The tag of content, or of a whole input, that may be text or a list.

    Whatever is no list is validated as a string, so that there is one complaint and not one for each form.
    """
    return "list" if isinstance(value, list) else "string"


MessageContent = Annotated[
    Annotated[str, Tag("string")] | Annotated[Parts, Tag("list")],
    Discriminator(form_of),
]


def content_of(content: str | list[Part]) -> Content:
    """The engine's form of what a caller wrote."""
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: TextContent | ImageContent) -> ContentPart:
    if isinstance(part, TextContent):
        return TextPart(type="text", text=part.text)
    return ImagePart(type="image_url", image_url={"url": part.image_url.url})
