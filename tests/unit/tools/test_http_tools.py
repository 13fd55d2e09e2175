"""Which HTTP tools there may be: the operator's switch, hosts and secrets."""

from __future__ import annotations

from typing import Any

import pytest

from app.engine.tool_definitions import HttpToolDefinition
from app.tools.egress import Allowance, Egress
from app.tools.errors import ToolDefinitionError, ToolSettingError
from app.tools.hosts import HostPatterns
from app.tools.http_tools import DefinitionSource, HttpTools
from app.tools.secrets import Secret, Secrets

SECRETS = Secrets(
    {
        "key": Secret("hunter2x", HostPatterns.parse(["api.example.com"])),
        "unbound": Secret("hunter2y"),
    }
)


def definition(url: str = "https://api.example.com/", **fields: Any) -> HttpToolDefinition:
    return HttpToolDefinition.model_validate({"type": "http", "name": "orders", "url": url, **fields})


def http_tools(*hosts: str, enabled: bool = True, allow: tuple[str, ...] = ()) -> HttpTools:
    return HttpTools(enabled=enabled, hosts=hosts, egress=Egress(Allowance.parse(allow)), secrets=SECRETS)


def test_tools_from_the_api_are_off_unless_the_operator_switches_them_on() -> None:
    tools = http_tools("*", enabled=False)
    assert "HTTP_TOOLS" in (tools.problem(definition(), DefinitionSource.API) or "")
    assert tools.problem(definition(), DefinitionSource.FILE) is None


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("api.example.com", True),
        ("api.example.com:443", True),
        ("*.example.com", True),
        ("*", True),
        ("api.example.com:8443", False),
        ("example.com", False),
        ("other.example", False),
    ],
)
def test_tools_from_the_api_call_the_allowed_hosts_only(host: str, allowed: bool) -> None:
    problem = http_tools(host).problem(definition(), DefinitionSource.API)
    assert (problem is None) is allowed
    assert problem is None or "HTTP_TOOL_HOSTS" in problem
    assert http_tools(host).problem(definition(), DefinitionSource.FILE) is None


def test_no_host_is_allowed_where_none_is_listed() -> None:
    assert http_tools().problem(definition(), DefinitionSource.API) is not None


@pytest.mark.parametrize("source", DefinitionSource)
@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/", "http://[64:ff9b::7f00:1]/", "http://0x7f.1/"],
)
def test_a_private_address_is_refused_unless_the_operator_opens_it(url: str, source: DefinitionSource) -> None:
    assert http_tools("*").problem(definition(url), source) is not None


def test_an_opened_address_is_allowed() -> None:
    tools = http_tools("*", allow=("127.0.0.1:9000",))
    assert tools.problem(definition("http://127.0.0.1:9000/"), DefinitionSource.API) is None
    assert tools.problem(definition("http://127.0.0.1:9001/"), DefinitionSource.API) is not None


@pytest.mark.parametrize("source", DefinitionSource)
@pytest.mark.parametrize(
    ("secret", "url", "fine"),
    [
        ("key", "https://api.example.com/", True),
        ("key", "https://other.example/", False),
        ("unbound", "https://api.example.com/", False),
        ("unknown", "https://api.example.com/", False),
    ],
)
def test_secrets_are_checked_against_the_host(secret: str, url: str, fine: bool, source: DefinitionSource) -> None:
    problem = http_tools("*").problem(definition(url, headers={"X-Key": f"{{{{ secrets.{secret} }}}}"}), source)
    assert (problem is None) is fine
    assert "hunter" not in (problem or "")


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "https://api.example.com/#x"},
        {"headers": {"Host": "x"}},
        {"parameters": {"type": "object", "$ref": "https://example.com/x.json"}},
        {"parameters": {"type": "object", "properties": {"a": {"type": "text"}}}},
    ],
)
def test_a_definition_that_could_not_be_called_is_told_with_the_tools_name(fields: dict[str, Any]) -> None:
    tools = http_tools("*")
    problem = tools.problem(definition(**fields), DefinitionSource.FILE)
    assert problem is not None
    assert problem.startswith("the HTTP tool 'orders': ")
    assert "\n" not in problem
    with pytest.raises(ToolDefinitionError):
        tools.tool(definition(**fields))


def test_a_list_of_hosts_that_cannot_be_read_stops_the_start() -> None:
    with pytest.raises(ToolSettingError, match=r"^HTTP_TOOL_HOSTS: 'http://x' should"):
        http_tools("http://x")
