"""Settings of one service process, read from the environment and `.env` and handed down from the top.

A leaf: only `app.cli`, `app.main` and `app.runner` may import it. Everything below takes the values that it
needs as arguments.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_DATABASE_SCHEME = re.compile(r"^(postgresql|postgres|postgresql\+asyncpg)://")
_SECRET = {"openai_api_key", "anthropic_api_key", "embedding_api_key", "database_url", "database_direct_url"}


class SettingsError(ValueError):
    """A setting has a value that cannot be used. The text has one readable line for each, and no secret."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Seconds = Annotated[float, Field(allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, le=36500, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Every setting. A field's name in upper case is its variable; an empty variable counts as not set."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )

    database_url: str = Field(
        default="",
        repr=False,
        description="PostgreSQL 15 or later, postgresql://user:password@host:5432/name. "
        "Empty: an embedded Postgres, started and stopped with the service.",
    )
    database_direct_url: str = Field(
        default="",
        repr=False,
        description="The same database without a pooler in between, for LISTEN and for migrations. "
        "Empty: DATABASE_URL.",
    )
    database_prepared: bool = Field(
        default=True,
        description="on | off. Prepared statements; off when DATABASE_URL leads through PgBouncer in transaction mode.",
    )
    database_execution_connections: int = Field(
        default=10, ge=1, le=1000, description="The most connections for executing runs, of each replica."
    )
    database_api_connections: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="The most for answering requests; half as many more serve lists, threads and agents.",
    )
    database_stream_connections: int = Field(
        default=5, ge=1, le=1000, description="The most for reading the events of streams."
    )
    data_dir: Path = Field(default=Path(".data"), description="Where the embedded Postgres keeps its files.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    workers: int = Field(default=1, ge=1, le=256, description="Replica processes on this machine.")
    agents_dir: Path = Field(default=Path("agents"), description="Folder of agents as YAML files.")
    tool_modules: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        default=(), description="Comma-separated import paths of modules that hold @tool functions."
    )
    policy_modules: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        default=(),
        description="Comma-separated import paths of modules that hold PolicyRule or PolicyEngine objects; "
        "their rules hold for every agent.",
    )
    secrets_file: Path | None = Field(
        default=None,
        description="YAML file of the secrets that tools may use, each with the hosts that it may be sent to. "
        "Empty: none.",
    )
    mcp_servers_file: Path | None = Field(
        default=None,
        description="YAML or JSON file of the MCP servers whose tools agents may use (`mcpServers: {name: {...}}`). "
        "Empty: none.",
    )
    egress_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        default=(),
        description="Comma-separated hosts, host:port, *.name, addresses and networks (CIDR) that tools may reach "
        "although they are not public, such as 127.0.0.1:9000, 10.0.0.0/8.",
    )
    http_tools: bool = Field(
        default=False,
        description="on | off. HTTP tools in agents that come over the API; agents in AGENTS_DIR always have them.",
    )
    http_tool_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        default=(),
        description="Comma-separated hosts, host:port or *.name that those may call; * for any that tools may reach.",
    )
    sandbox_file: Path | None = Field(
        default=None,
        description="YAML file of the sandbox profiles that bound run_command, read_file, write_file and list_files "
        "(`name: {commands: [git], paths: {write: [/srv/work]}}`). Empty: none.",
    )
    openai_api_key: SecretStr = Field(default=SecretStr(""), description="Key of the native OpenAI-compatible client.")
    openai_base_url: str = Field(
        default="", description="Base URL of the native client, https://host/v1. Empty: OpenAI's own."
    )
    anthropic_api_key: SecretStr = Field(default=SecretStr(""), description="Key of the native client for anthropic/….")
    anthropic_base_url: str = Field(
        default="", description="Base URL of that client, https://host, without /v1. Empty: Anthropic's own."
    )
    anthropic_prompt_caching: bool = Field(
        default=True,
        description="on | off. Mark the prefixes that an agent's next step repeats, so that Anthropic charges a tenth "
        "for them then, and a quarter more now.",
    )
    providers_file: Path | None = Field(
        default=None,
        description="YAML file of model providers: servers of your own by the prefix of their models' names, limits a "
        "minute, circuit breakers. Empty: none.",
    )
    embedding_model: str = Field(
        default="",
        max_length=200,
        description="Model that memories are searched with by their meaning, such as text-embedding-3-small, the same "
        "for all replicas. Empty: by their words alone.",
    )
    embedding_base_url: str = Field(
        default="",
        description="Where it is, any server with OpenAI's POST /embeddings: https://host/v1. "
        "Empty: as OPENAI_BASE_URL, and with OPENAI_API_KEY unless there is a key below.",
    )
    embedding_api_key: SecretStr = Field(default=SecretStr(""), description="Key of that server.")
    max_concurrent_runs: int = Field(default=200, ge=1, description="Runs that one replica executes at once.")
    max_queued_runs: int = Field(
        default=100_000,
        ge=1,
        description="Runs queued over all replicas; past it a new one is refused (429).",
    )
    lease_s: Seconds = Field(
        default=15, ge=2, le=3600, description="Seconds after which a dead replica's runs move on."
    )
    shutdown_grace_s: Seconds = Field(
        default=20,
        ge=1,
        le=3600,
        description="Seconds that runs get to reach a commit when the service stops.",
    )
    shutdown_delay_s: Seconds = Field(
        default=1,
        ge=0,
        le=600,
        description="Seconds that requests are still answered after SIGTERM, with /readyz at 503, "
        "so that a load balancer sends them elsewhere before they fail; at least as long as it takes to notice.",
    )
    step_deadline_s: Seconds = Field(
        default=600,
        ge=1,
        description="Seconds without any progress after which a running run is reported as stalled "
        "(log, /metrics, a warning event). It goes on.",
    )
    retain_deltas_days: Days | None = Field(
        default=None,
        description="Days after a run's end for which its text deltas are kept; the texts stay. Empty: for ever.",
    )
    retain_events_days: Days | None = Field(
        default=None,
        description="Days after a run's end for which its events are kept, but for the last one. Empty: for ever.",
    )
    retain_checkpoints_days: Days | None = Field(
        default=None,
        description="Days after a run's end for which its checkpoints are kept, but for the last one. Empty: for ever.",
    )
    retain_runs_days: Days | None = Field(
        default=None,
        description="Days after its end for which a run is kept, with its child runs; its thread goes with the last "
        "of its runs. Empty: for ever.",
    )
    log_format: Annotated[Literal["console", "json"], BeforeValidator(_lower)] = Field(
        default="console", description="console | json."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info",
        description="debug | info | warning | error. Holds for every logger; libraries that tell of each request speak "
        "from warning on.",
    )
    telemetry: Annotated[Literal["none", "console", "json", "otel"], BeforeValidator(_lower)] = Field(
        default="none",
        description="none | console | json | otel. Traces: lines for people or JSON lines on standard output, or OTLP "
        "over HTTP, with metrics, as the OTEL_* variables of the environment say. /metrics is there with all of them.",
    )
    telemetry_content: bool = Field(
        default=False,
        description="on | off. Traces carry what people, models and tools say; otherwise none of it.",
    )

    @property
    def embedding_server(self) -> tuple[str, str]:
        """Base URL and key of the server that embeds, empty where there is none.

        Without one of its own it is that of the models, whose key goes nowhere else.
        """
        key = self.embedding_api_key.get_secret_value()
        if self.embedding_base_url:
            return self.embedding_base_url, key
        return self.openai_base_url, key or self.openai_api_key.get_secret_value()

    @field_validator("database_url", "database_direct_url")
    @classmethod
    def _normalise_database_url(cls, url: str) -> str:
        """One spelling for all that follows: the one that asyncpg and libpq know, postgresql://."""
        if not url:
            return url
        scheme = _DATABASE_SCHEME.match(url)
        if scheme is None:
            raise ValueError("should start with postgresql:// or postgres://")
        url = "postgresql://" + url[scheme.end() :]
        # urlsplit itself raises ValueError with a readable text for a bad port or bracket.
        _ = urlsplit(url).port
        return url

    @field_validator("agents_dir")
    @classmethod
    def _check_agents_dir(cls, folder: Path) -> Path:
        if folder != Path("agents") and not folder.is_dir():
            raise ValueError("should be a folder that exists")
        return folder

    @field_validator("secrets_file", "mcp_servers_file", "sandbox_file", "providers_file")
    @classmethod
    def _check_file(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("should be a file that exists")
        return path

    @field_validator("shutdown_delay_s")
    @classmethod
    def _check_shutdown_delay(cls, delay: float, info: ValidationInfo) -> float:
        grace = info.data.get("shutdown_grace_s")
        if grace is not None and delay >= grace:
            raise ValueError(f"should be less than SHUTDOWN_GRACE_S, {grace:g}, of which it is a part")
        return delay

    @field_validator("http_tool_hosts")
    @classmethod
    def _check_http_tool_hosts(cls, hosts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not hosts and info.data.get("http_tools"):
            raise ValueError("HTTP_TOOLS=on needs the hosts that may be called, or * for any that tools may reach")
        return hosts

    @field_validator("anthropic_base_url")
    @classmethod
    def _without_version(cls, url: str) -> str:
        """The version is part of each path; Anthropic's own clients, too, are given the address without it."""
        return url.rstrip("/").removesuffix("/v1")

    @field_validator("openai_base_url", "anthropic_base_url", "embedding_base_url")
    @classmethod
    def _check_base_url(cls, url: str) -> str:
        if not url:
            return url
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("should be an http:// or https:// URL")
        return url.rstrip("/")

    @field_validator("tool_modules", "policy_modules")
    @classmethod
    def _check_modules(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        for module in modules:
            if not all(part.isidentifier() for part in module.split(".")):
                raise ValueError(f"{module!r} is not an import path such as package.module")
        return modules

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings.

        Args:
            overrides: Values by field name that go before the environment; None means not given.

        Raises:
            SettingsError: A value cannot be used; the text names the variable, the value and what is allowed.
        """
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            raise SettingsError("\n".join(_readable(error))) from None


# pydantic's words for these speak of parsing.
_ALLOWED = {
    "bool_parsing": "should be on or off",
    "int_parsing": "should be a whole number",
    "float_parsing": "should be a number",
}


def _readable(error: ValidationError) -> list[str]:
    lines: list[str] = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0])
        given = "its value" if name in _SECRET else repr(problem["input"])
        said = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        reason = _ALLOWED.get(problem["type"], said)
        lines.append(f"{name.upper()}: {given} cannot be used: {reason}")
    return lines
