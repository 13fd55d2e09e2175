"""Which HTTP tools there may be, by the operator's settings, and what each of them needs."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from app.engine.tool_definitions import HttpToolDefinition
from app.tools.egress import Egress
from app.tools.errors import EgressRefusedError, SecretError, ToolDefinitionError, ToolSettingError
from app.tools.hosts import HostPatterns
from app.tools.http_request import RequestTemplate
from app.tools.http_tool import HttpTool
from app.tools.secrets import Secrets


class DefinitionSource(StrEnum):
    """Who wrote a definition: the operator, in a file, or a caller of the API."""

    FILE = "file"
    API = "api"


class HttpTools:
    """Makes HTTP tools, and says which definitions may be made into one.

    Args:
        enabled: whether definitions that came over the API may have HTTP tools (setting HTTP_TOOLS).
        hosts: the only hosts of theirs (setting HTTP_TOOL_HOSTS): names, `*.name`, addresses, each also with `:port`,
            or `*` for all.

    Raises:
        ToolSettingError: `hosts` cannot be read.
    """

    def __init__(self, *, enabled: bool, hosts: Iterable[str], egress: Egress, secrets: Secrets) -> None:
        self._enabled = enabled
        try:
            self._hosts = HostPatterns.parse(hosts)
        except ValueError as error:
            raise ToolSettingError(f"HTTP_TOOL_HOSTS: {error}") from error
        self._egress = egress
        self._secrets = secrets

    def problem(self, definition: HttpToolDefinition, source: DefinitionSource) -> str | None:
        """What speaks against a definition, in one line for its author; None if nothing does. Sends nothing."""
        about = f"the HTTP tool {definition.name!r}"
        if source is DefinitionSource.API and not self._enabled:
            return f"{about}: HTTP tools are off on this server, but for agents from files (setting HTTP_TOOLS)"
        try:
            template = self.tool(definition).template
            target = template.target
            if source is DefinitionSource.API and not self._hosts.match(target.host, target.port):
                return f"{about}: url: {target.host} is none of the hosts of HTTP tools (setting HTTP_TOOL_HOSTS)"
            self._egress.check(target)
            for name in sorted(template.secret_names):
                self._secrets.for_host(name, target.host)
        except (ToolDefinitionError, EgressRefusedError, SecretError) as error:
            return f"{about}: {error}"
        return None

    def tool(self, definition: HttpToolDefinition) -> HttpTool:
        """The tool of a definition that nothing speaks against.

        Whoever names an allowed host could use a redirect of it to reach any other; so from there it only goes to
        allowed hosts. A host that is not allowed stands in the operator's own files, and is followed anywhere.

        Raises:
            ToolDefinitionError: no call of it could be sent.
        """
        target = RequestTemplate(definition).target
        is_allowed = self._hosts.match(target.host, target.port)
        return HttpTool(definition, self._egress, self._secrets, redirect_hosts=self._hosts if is_allowed else None)
