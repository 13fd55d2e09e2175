"""When two calls are the same."""

from __future__ import annotations

import hashlib

import orjson

from app.engine.model import ModelRequest
from app.llm.json_values import plain_mapping


def request_key(request: ModelRequest) -> bytes:
    """SHA-256 over all that an answer hangs on: tenant, model, messages, tools, settings, schema.

    Not in it: how hard to try, and which models to ask instead.
    """
    said = [
        request.tenant_id,
        request.model,
        [(message.role, message.body()) for message in request.messages],
        [(tool.name, tool.description, tool.parameters) for tool in request.tools],
        request.settings,
        request.response_schema,
    ]
    return hashlib.sha256(orjson.dumps(said, default=plain_mapping, option=orjson.OPT_SORT_KEYS)).digest()
