"""What the service says about itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from app.api.schemas.fields import Resource

_INFO_EXAMPLE = {
    "version": "0.1.0",
    "capabilities": ["runs", "threads", "agents", "events"],
    "limits": {"max_steps": 20},
    "model_clients": ["openai", "demo", "litellm"],
}


class Alive(Resource):
    model_config = ConfigDict(json_schema_extra={"example": {"status": "ok"}})

    status: Literal["ok"]


class Ready(Resource):
    model_config = ConfigDict(json_schema_extra={"example": {"status": "ready"}})

    status: Literal["ready"]


class Info(Resource):
    model_config = ConfigDict(json_schema_extra={"example": _INFO_EXAMPLE})

    version: str
    capabilities: Any
    limits: dict[str, Any]
    model_clients: list[str]
