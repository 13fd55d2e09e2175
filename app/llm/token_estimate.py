"""Token counts where a provider gives none: four characters a token, about what English text comes to."""

from __future__ import annotations

from app.engine.messages import Message, ToolCall
from app.engine.model import ModelRequest
from app.engine.usage import Usage

CHARS_PER_TOKEN = 4
_PER_MESSAGE = 4  # role and separators


def tokens_of(chars: int) -> int:
    """The tokens that so many characters come to, rounded up."""
    return -(-chars // CHARS_PER_TOKEN)


def message_tokens(message: Message) -> int:
    """What one message of a request probably comes to."""
    chars = len(message.text()) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return tokens_of(chars) + _PER_MESSAGE


def estimate_input(request: ModelRequest) -> int:
    """The tokens that a request has probably; images count as nothing."""
    chars = sum(len(tool.name) + len(tool.description) + len(str(tool.parameters)) for tool in request.tools)
    for message in request.messages:
        chars += len(message.text()) + sum(len(c.name) + len(c.arguments) for c in message.tool_calls)
    return tokens_of(chars) + _PER_MESSAGE * len(request.messages)


def estimate_usage(request: ModelRequest, text: str, tool_calls: tuple[ToolCall, ...] = ()) -> Usage:
    """What one call that answered with `text` and `tool_calls` has probably used."""
    output_chars = len(text) + sum(len(call.name) + len(call.arguments) for call in tool_calls)
    return Usage(llm_calls=1, input_tokens=estimate_input(request), output_tokens=max(1, tokens_of(output_chars)))
