"""The client for each model's prefix."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from app.engine.model import ModelClient, ModelEvent, ModelRequest


class ModelRouter:
    """A `ModelClient` that hands each request to the client of its model's prefix.

    Args:
        clients: prefix (without the slash) to client.
        otherwise: answers for all other prefixes.
    """

    def __init__(self, clients: Mapping[str, ModelClient], otherwise: ModelClient) -> None:
        self._clients = dict(clients)
        self._otherwise = otherwise

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        prefix = request.model.partition("/")[0]
        return self._clients.get(prefix, self._otherwise).stream(request)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        for client in (*self._clients.values(), self._otherwise):
            await client.aclose()
