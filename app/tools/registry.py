"""The tools that this replica has, and the port through which the engine calls them."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, cast

from app.engine.tool_definitions import Toolbox
from app.engine.tools import ToolPort, ToolSpec
from app.telemetry.logs import get_logger
from app.tools.agent_tools import AgentTools, declared_tools
from app.tools.callable_tool import CallableTool
from app.tools.egress import Egress
from app.tools.errors import ToolRegistrationError
from app.tools.execution import ToolExecutor
from app.tools.function_tool import FunctionTool
from app.tools.http_tools import HttpTools
from app.tools.mcp_servers.names import server_of
from app.tools.mcp_servers.servers import McpServers
from app.tools.python_tool import PythonTool
from app.tools.raised import Raised
from app.tools.result_writer import ResultWriter
from app.tools.sandbox.profile import Sandboxes
from app.tools.secrets import Secrets
from app.tools.thread_pool import ThreadPool
from app.tools.tool_set import SETTLE_S, ToolSet

DEFAULT_MAX_THREADS = 32
DEFAULT_RECORD_MAX_BYTES = 1024 * 1024

_CACHED_AGENTS = 256

_log = get_logger(__name__)


class ToolRegistry(ToolSet):
    """Implements `app.engine.tools.ToolPort`: the replica's tools.

    Args:
        tools: to start with; `register` and `load_modules` add more.
        max_threads: how many synchronous tools may run at once.
        record_max_bytes: the bound of a result's `output` in UTF-8.
        secrets: the operator's; tools get those that they name, and no output shows one.
        sandboxes: the operator's profiles.
        mcp: the operator's MCP servers.
        http: makes the HTTP tools that agents declare.
        egress: what both send through; it is closed with the registry.
    """

    def __init__(
        self,
        tools: Iterable[FunctionTool[..., Any]] = (),
        *,
        max_threads: int = DEFAULT_MAX_THREADS,
        record_max_bytes: int = DEFAULT_RECORD_MAX_BYTES,
        secrets: Secrets | None = None,
        sandboxes: Sandboxes | None = None,
        mcp: McpServers | None = None,
        http: HttpTools | None = None,
        egress: Egress | None = None,
    ) -> None:
        self._secrets = secrets or Secrets()
        self._threads = ThreadPool(max_threads)
        self._tools: dict[str, PythonTool] = {}
        self.mcp = mcp
        self.http = http
        self._egress = egress
        self._agents: OrderedDict[str, AgentTools] = OrderedDict()
        writer = ResultWriter(self._secrets, record_max_bytes)
        super().__init__(ToolExecutor(self._threads, writer), writer, sandboxes or Sandboxes())
        for tool in tools:
            self.register(tool)

    def register(self, tool: FunctionTool[..., Any]) -> None:
        """Add a tool; adding the same object again changes nothing.

        Raises:
            ToolRegistrationError: another tool has the name.
        """
        name = tool.spec.name
        taken = self._tools.setdefault(name, PythonTool(tool, self._threads, self._secrets))
        if taken.tool is not tool:
            raise ToolRegistrationError(
                f"two tools are named {name!r}: {taken.tool.origin} and {tool.origin}; "
                "give one of them another name with @tool(name=...)"
            )
        if missing := [secret for secret in tool.secrets if secret not in self._secrets]:
            _log.warning(
                "tool_secrets_missing", tool_name=name, secrets=missing, hint="its calls fail until they are set"
            )

    @property
    def problem(self) -> str | None:
        """What keeps tools from being run that only a restart mends; None if nothing does."""
        return self._threads.problem

    def load_modules(self, names: Iterable[str]) -> None:
        """Import the operator's modules (setting TOOL_MODULES) and add every tool at their top level.

        Raises:
            ToolRegistrationError: a module cannot be imported, has no tools, or brings a name that is taken.
        """
        for name in names:
            tools = _tools_in(_module(name))
            if not tools:
                raise ToolRegistrationError(
                    f"TOOL_MODULES names {name!r}, which has no @tool function at its top level"
                )
            for tool in tools:
                self.register(tool)

    def specs(self) -> list[ToolSpec]:
        """All tools but those of MCP servers, in the order in which they were added."""
        return [tool.spec for tool in self._tools.values()]

    def sandboxes(self) -> list[str]:
        """The names of the operator's sandbox profiles."""
        return list(self.profiles)

    def for_agent(self, toolbox: Toolbox) -> ToolPort:
        """See `ToolPort.for_agent`. What an agent's definition declares is made once, as long as it is in use."""
        if not toolbox.definitions and not toolbox.mcp_servers:
            return self
        tools = self._agents.pop(toolbox.version_id, None)
        if tools is None:
            declared = declared_tools(toolbox, self.http)
            tools = AgentTools(self, declared, toolbox.mcp_servers, self.mcp)
            if len(self._agents) >= _CACHED_AGENTS:
                self._agents.popitem(last=False)
        self._agents[toolbox.version_id] = tools
        return tools

    def find(self, name: str) -> CallableTool | None:
        """See `ToolSet.find`."""
        return self._tools.get(name) or (None if self.mcp is None else self.mcp.find(name))

    async def settled(self, names: Sequence[str]) -> None:
        """See `ToolPort.settled`."""
        if self.mcp is not None and any(self.find(name) is None and self.may_come(name) for name in names):
            await self.mcp.settled(SETTLE_S)

    def added(self) -> Iterable[CallableTool]:
        """See `ToolSet.added`."""
        return ()

    def may_come(self, name: str) -> bool:
        """See `ToolSet.may_come`."""
        return self.mcp is not None and self.mcp.declared(server_of(name))

    def start(self) -> None:
        """Begin to connect to the MCP servers, in the background; nothing waits for them."""
        if self.mcp is not None:
            self.mcp.start()

    async def aclose(self) -> None:
        """End what can be ended, within seconds. Busy threads do not keep the process from exiting."""
        await self.executor.aclose()
        if self.mcp is not None:
            await self.mcp.aclose()
        if self._egress is not None:
            await self._egress.aclose()


def _tools_in(module: ModuleType) -> list[FunctionTool[..., Any]]:
    values = cast("dict[str, object]", vars(module)).values()
    return [cast("FunctionTool[..., Any]", value) for value in values if isinstance(value, FunctionTool)]


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ToolRegistrationError(
            f"TOOL_MODULES names {name!r}, which cannot be imported: {Raised(error).summary}"
        ) from error
