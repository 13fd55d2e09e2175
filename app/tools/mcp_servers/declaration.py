"""The operator's file of MCP servers: where each one is, and the bounds of its calls.

The shape is the one that MCP clients share, `mcpServers: {name: {command, args, env} | {url, headers}}`, with our
bounds beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator
from pydantic_core import ErrorDetails

from app.engine.effects import ToolEffect
from app.tools.errors import ToolSettingError

_MAX_FILE_BYTES = 1024 * 1024
_MAX_DEPTH = 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # RFC 9110, token
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STDIO, _HTTP = "command", "url"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class _Declared(_Data):
    """What every server has.

    Args:
        timeout_s: the most seconds of one call, waiting for a free session included.
        start_timeout_s: the most seconds until a new session has told its tools.
        max_sessions: processes or HTTP sessions at once; each one works on one call at a time.
        max_output_bytes: the most bytes of one answer.
        effect: of every tool that `effects` does not name.
        effects: by the server's own names of its tools.
        trust_annotations: whether the server's `readOnlyHint` and `idempotentHint` go before `effect`.
    """

    timeout_s: float = Field(default=30.0, gt=0, le=600)
    start_timeout_s: float = Field(default=15.0, gt=0, le=120)
    max_sessions: int = Field(default=2, ge=1, le=64)
    max_output_bytes: int = Field(default=1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    effect: ToolEffect = ToolEffect.UNSAFE
    effects: dict[str, ToolEffect] = Field(default_factory=dict[str, ToolEffect])
    trust_annotations: bool = False


class StdioDeclaration(_Declared):
    """A server that is a program: started by us, spoken to over its standard input and output."""

    type: Literal["stdio"] = "stdio"
    command: str = Field(min_length=1)
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict[str, str])
    cwd: Path | None = None

    @field_validator("env")
    @classmethod
    def _are_variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not _VARIABLE.fullmatch(name) or "\0" in value:
                raise ValueError(f"{name!r} is no environment variable")
        return env


class HttpDeclaration(_Declared):
    """A server behind a URL, spoken to over streamable HTTP."""

    type: Literal["http", "streamable-http"] = "http"
    url: str = Field(max_length=2000)
    headers: dict[str, str] = Field(default_factory=dict[str, str])

    @field_validator("url")
    @classmethod
    def _has_a_host(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("should be an http:// or https:// URL with a host")
        if "@" in parts.netloc or "{" in url or parts.fragment:
            raise ValueError("should have no credentials, placeholders or fragment in it; credentials go into headers")
        _ = parts.port  # raises ValueError with a readable text
        return url

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or any(ord(char) < 32 or ord(char) > 126 for char in value):
                raise ValueError(f"{name!r} is no HTTP header")
        return headers


def _kind(value: Any) -> str | None:
    """What a server's entry is by its keys, or None where that is not clear."""
    if not isinstance(value, Mapping):
        return None
    kinds = [key for key in (_STDIO, _HTTP) if key in value]
    return kinds[0] if len(kinds) == 1 else None


McpDeclaration = StdioDeclaration | HttpDeclaration

_Entry = Annotated[
    Annotated[StdioDeclaration, Tag(_STDIO)] | Annotated[HttpDeclaration, Tag(_HTTP)],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="should have either a command (stdio) or a url (streamable HTTP)",
    ),
]


class _File(_Data):
    mcpServers: dict[str, _Entry]  # the name that MCP clients share

    @field_validator("mcpServers")
    @classmethod
    def _have_names(cls, servers: dict[str, _Entry]) -> dict[str, _Entry]:
        for name in servers:
            # `server__tool` has to say where the one ends and the other begins.
            if not _NAME.fullmatch(name) or "__" in name or name.endswith("_"):
                raise ValueError(
                    f"{name!r} is no name for a server: use 1 to 32 letters, digits, - and single _, "
                    "starting with a letter or _ and not ending with _"
                )
        return servers


def read_declarations(path: Path) -> dict[str, McpDeclaration]:
    """The servers of a file, YAML or (named `*.json`) JSON, by name.

    Raises:
        ToolSettingError: it cannot be read, or something in it is not understood; one line for each problem, with the
            file and the place in it.
    """
    content = _content(path)
    if not isinstance(content, dict):
        raise _unusable(path, "should hold `mcpServers:` with one entry for each server")
    try:
        return dict(_File.model_validate(content).mcpServers)
    except ValidationError as error:
        raise _unusable(path, *(_problem(detail) for detail in error.errors(include_url=False))) from None


def _content(path: Path) -> object:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise _unusable(path, f"cannot be read: {reason}") from None
    if len(text) > _MAX_FILE_BYTES:
        raise _unusable(path, f"is larger than {_MAX_FILE_BYTES} bytes")
    # What the parsers say is not repeated: they say it with pieces of the text, and credentials may be in it.
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_without_doubles)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _check_doubles(root, depth=0)
        return yaml.safe_load(text)
    except _Double as error:
        raise _unusable(path, f"has {str(error)!r} twice in one place") from None
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _unusable(path, f"is no YAML{place}") from None
    except json.JSONDecodeError as error:
        raise _unusable(path, f"is no JSON at line {error.lineno}") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise _unusable(path, "is neither YAML nor, with a name that ends in .json, JSON") from None


class _Double(ValueError):
    """A key that stands twice in one mapping, of which a parser would take the last without a word."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Double(key)
        found[key] = value
    return found


def _check_doubles(node: yaml.Node, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise yaml.YAMLError
    if isinstance(node, yaml.MappingNode):
        _without_doubles([(str(key.value), None) for key, _ in node.value])
        for _, value in node.value:
            _check_doubles(value, depth + 1)


def _problem(detail: ErrorDetails) -> str:
    said = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    # The third step is the kind of server that was chosen for the entry, which is not in the file.
    steps = [str(step) for place, step in enumerate(detail["loc"]) if place != 2 or step not in (_STDIO, _HTTP)]
    return f"{'.'.join(steps)}: {said}"


def _unusable(path: Path, *problems: str) -> ToolSettingError:
    return ToolSettingError("\n".join(f"MCP_SERVERS_FILE: {path}: {problem}" for problem in problems))
