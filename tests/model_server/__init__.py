"""A local OpenAI-compatible server for tests and load: `async with ModelServer() as server`, or
`python -m tests.model_server`."""

from tests.model_server.reply import Reply
from tests.model_server.server import ModelServer, RecordedRequest

__all__ = ["ModelServer", "RecordedRequest", "Reply"]
