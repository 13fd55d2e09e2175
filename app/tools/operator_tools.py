"""The tools of a process, with what its operator has declared for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from app.telemetry.logs import redact_logs
from app.tools.egress import Allowance, Egress
from app.tools.http_tools import HttpTools
from app.tools.mcp_servers import McpServers, read_declarations
from app.tools.memory_tools import recall, remember
from app.tools.registry import ToolRegistry
from app.tools.sandbox.profile import Sandboxes
from app.tools.sandbox.tools import sandbox_tools
from app.tools.secrets import Secrets
from app.tools.secrets_file import read_secrets


class OperatorSettings(Protocol):
    """The settings of these names; None for no such file."""

    @property
    def secrets_file(self) -> Path | None: ...
    @property
    def sandbox_file(self) -> Path | None: ...
    @property
    def mcp_servers_file(self) -> Path | None: ...
    @property
    def egress_allow(self) -> Sequence[str]: ...
    @property
    def http_tools(self) -> bool: ...
    @property
    def http_tool_hosts(self) -> Sequence[str]: ...


def operator_registry(settings: OperatorSettings) -> ToolRegistry:
    """A registry of the memory and sandboxed tools, with the secrets, hosts, servers and profiles that tools may use.

    From now on the secrets are struck out of every line that this process logs.

    Raises:
        ToolSettingError: a setting, or a file that one names, cannot be used.
    """
    secrets = read_secrets(settings.secrets_file, os.environ) if settings.secrets_file else Secrets()
    redact_logs(secrets.redacted)
    sandboxes = Sandboxes.of_file(settings.sandbox_file) if settings.sandbox_file else Sandboxes()
    servers = read_declarations(settings.mcp_servers_file) if settings.mcp_servers_file else {}
    egress = Egress(Allowance.parse(settings.egress_allow))
    return ToolRegistry(
        [remember, recall, *sandbox_tools(sandboxes)],
        secrets=secrets,
        sandboxes=sandboxes,
        mcp=McpServers(servers, secrets, egress) if servers else None,
        http=HttpTools(enabled=settings.http_tools, hosts=settings.http_tool_hosts, egress=egress, secrets=secrets),
        egress=egress,
    )
