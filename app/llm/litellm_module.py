"""litellm, imported when a model first needs it, and typed as far as it is used here.

Importing it takes seconds of CPU and some 100 MB, so nothing that the service does without it may import it,
and its annotations are too loose for strict checking: this file is the only one that touches the module.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, MutableMapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast


class LiteLLMChunk(Protocol):
    """`litellm.ModelResponseStream`, or `litellm.ModelResponse` from a provider that cannot stream."""

    def model_dump(self, *, exclude_none: bool) -> dict[str, Any]: ...


class LiteLLM(Protocol):
    """The part of the module that is used."""

    suppress_debug_info: bool
    telemetry: bool
    disable_token_counter: bool
    model_cost: MutableMapping[str, dict[str, Any]]

    async def acompletion(self, **arguments: Any) -> AsyncIterator[LiteLLMChunk] | LiteLLMChunk: ...

    async def close_litellm_async_clients(self) -> None: ...

    def supports_response_schema(self, *, model: str) -> bool: ...

    def get_supported_openai_params(self, *, model: str) -> Sequence[str] | None: ...


async def litellm_module() -> LiteLLM:
    """litellm, imported in a thread if it was not yet, so that the event loop goes on."""
    return await asyncio.to_thread(_import)


def _import() -> LiteLLM:
    # Without these it fetches its price table over the network and reads a .env file from the working
    # directory.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    module = cast("LiteLLM", import_module("litellm"))
    module.telemetry = False
    module.suppress_debug_info = True
    # Where a provider counts nothing, litellm would count by some tokenizer, and not say so.
    module.disable_token_counter = True
    return module
