"""litellm, imported when a model first needs it, and typed as far as it is used here.

Importing it takes seconds of CPU and some 100 MB, so nothing that the service does without it may import it,
and its annotations are too loose for strict checking: this file is the only one that touches the module.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
# What its code reads and its own list of variables does not have.
_NOT_LISTED: Mapping[str, Sequence[str]] = {
    "azure_ai": ("AZURE_AI_API_BASE", "AZURE_AI_API_KEY"),
    "databricks": ("DATABRICKS_API_BASE", "DATABRICKS_API_KEY"),
    "snowflake": ("SNOWFLAKE_JWT", "SNOWFLAKE_ACCOUNT_ID"),
}


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

    def validate_environment(self, *, model: str) -> Mapping[str, Any]: ...


async def litellm_module() -> LiteLLM:
    """litellm, imported in a thread if it was not yet, so that the event loop goes on."""
    return await asyncio.to_thread(_import)


def missing_variables(litellm: LiteLLM, model: str) -> Sequence[str]:
    """The environment variables that a model's provider reads and that are not set; empty where litellm has no list.

    Args:
        model: as litellm names it.
    """
    listed: Sequence[str] = litellm.validate_environment(model=model).get("missing_keys", ())
    return listed or [name for name in _NOT_LISTED.get(model.partition("/")[0], ()) if not os.environ.get(name)]


def _import() -> LiteLLM:
    # Without these it fetches its price table over the network and reads a .env file from the working
    # directory.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    module = cast("LiteLLM", import_module("litellm"))
    for name in _LOGGERS:  # they hand their lines on as well, so each would be told twice, once in another format
        logging.getLogger(name).handlers.clear()
    module.telemetry = False
    module.suppress_debug_info = True
    # Where a provider counts nothing, litellm would count by some tokenizer, and not say so.
    module.disable_token_counter = True
    return module
