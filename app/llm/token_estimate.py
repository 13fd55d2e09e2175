"""Token counts where a provider gives none: four characters a token, about what English text comes to.

No tokenizer: OpenAI's would fit OpenAI's models alone, which do tell their counts, and keeps 80 MB in memory.
"""

from __future__ import annotations

from app.engine.messages import Message, ToolCall
from app.engine.model import ModelRequest
from app.engine.usage import Usage

CHARS_PER_TOKEN = 4
_PER_MESSAGE = 4  # role and separators
# About the most that an image of usual size takes: Anthropic counts width x height / 750, and shrinks what is beyond
# 1,568 pixels or some 1,600 tokens (https://platform.claude.com/docs/en/build-with-claude/vision); OpenAI counts 765
# for 1,024 x 1,024 (https://platform.openai.com/docs/guides/images-vision#calculating-costs).
IMAGE_TOKENS = 1600


def tokens_of(chars: int) -> int:
    """The tokens that so many characters come to, rounded up."""
    return -(-chars // CHARS_PER_TOKEN)


def message_tokens(message: Message) -> int:
    """What one message of a request probably comes to; an image counts as `IMAGE_TOKENS`, whatever its size: of one
    behind a URL nothing is known.
    """
    chars = len(message.text()) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    images = 0 if isinstance(message.content, str) else sum(part["type"] == "image_url" for part in message.content)
    return tokens_of(chars) + _PER_MESSAGE + IMAGE_TOKENS * images


def estimate_input(request: ModelRequest) -> int:
    """The tokens that a request has probably."""
    chars = sum(len(tool.name) + len(tool.description) + len(str(tool.parameters)) for tool in request.tools)
    return tokens_of(chars) + sum(message_tokens(message) for message in request.messages)


def estimate_usage(request: ModelRequest, text: str, tool_calls: tuple[ToolCall, ...] = ()) -> Usage:
    """What one call that answered with `text` and `tool_calls` has probably used."""
    output_chars = len(text) + sum(len(call.name) + len(call.arguments) for call in tool_calls)
    return Usage(llm_calls=1, input_tokens=estimate_input(request), output_tokens=max(1, tokens_of(output_chars)))
