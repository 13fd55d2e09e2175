"""Tools that an agent's definition declares: HTTP calls, and calls that the caller runs. Data only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from app.engine.effects import ToolEffect

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]

URL_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECRET_PLACEHOLDER = re.compile(r"\{\{\s*secrets\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # RFC 9110, token
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Declared(_Data):
    name: ToolName
    description: str = Field(default="", max_length=4000)
    parameters: dict[str, Any] = Field(
        default_factory=lambda: dict(_NO_PARAMETERS), description="JSON Schema (2020-12) of the arguments, an object."
    )

    @field_validator("parameters")
    @classmethod
    def _describes_an_object(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if schema.get("type") != "object":
            raise ValueError('should be a JSON Schema with "type": "object"')
        return schema


class HttpToolDefinition(_Declared):
    """A tool whose call is one HTTP request.

    `{name}` in the URL's path or query takes that argument, percent-encoded; the arguments that are left become the
    query (GET, DELETE) or the JSON body. `{{ secrets.name }}` in a header takes an operator's secret, which goes only
    to the hosts that it is bound to.
    """

    type: Literal["http"]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str = Field(max_length=2000, examples=["https://api.example.com/orders/{order_id}"])
    headers: dict[str, str] = Field(default_factory=dict[str, str], max_length=32)
    effect: ToolEffect | None = Field(default=None, description="By default read_only for GET and unsafe for the rest.")
    timeout_s: float = Field(default=30.0, gt=0, le=600)

    @field_validator("url")
    @classmethod
    def _has_a_fixed_host(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("should be an http:// or https:// URL with a host")
        if "{" in parts.netloc or "@" in parts.netloc:
            raise ValueError("should name its host as it is: no placeholders and no credentials in it")
        return url

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or any(ord(char) < 32 or ord(char) == 127 for char in value):
                raise ValueError(f"{name!r} is no HTTP header")
        return headers

    @model_validator(mode="after")
    def _placeholders_are_parameters(self) -> Self:
        known: object = self.parameters.get("properties", {})
        for name in URL_PLACEHOLDER.findall(self.url):
            if not isinstance(known, dict) or name not in known:
                raise ValueError(f"url: {{{name}}} is none of the parameters' properties")
        return self


class CallerToolDefinition(_Declared):
    """A tool that the caller runs: the run waits until its result is posted, or until `ttl_s` seconds have passed."""

    type: Literal["caller"]
    ttl_s: float = Field(default=3600.0, gt=0, le=31_536_000)
    effect: ToolEffect = ToolEffect.UNSAFE


ToolDefinition = Annotated[HttpToolDefinition | CallerToolDefinition, Field(discriminator="type")]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What an agent's definition adds to the tools that a replica has.

    Args:
        version_id: of the pinned definition; equal ids mean equal toolboxes.
        mcp_servers: the operator's MCP servers all of whose tools the agent may use.
    """

    version_id: str
    definitions: tuple[ToolDefinition, ...] = ()
    mcp_servers: tuple[str, ...] = ()
