"""The operator's file of MCP servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from app.engine.effects import ToolEffect
from app.tools.errors import ToolSettingError
from app.tools.mcp_servers import McpDeclaration, read_declarations
from app.tools.mcp_servers.declaration import HttpDeclaration, StdioDeclaration


def read(tmp_path: Path, text: str, name: str = "servers.yaml") -> dict[str, McpDeclaration]:
    file = tmp_path / name
    file.write_text(text)
    return read_declarations(file)


def problem(tmp_path: Path, text: str, name: str = "servers.yaml") -> str:
    """What is wrong with a file, without the setting's name and the file's."""
    with pytest.raises(ToolSettingError) as caught:
        read(tmp_path, text, name)
    return str(caught.value).replace(f"MCP_SERVERS_FILE: {tmp_path / name}: ", "")


def wrong(tmp_path: Path, **server: Any) -> str:
    return problem(tmp_path, orjson.dumps({"mcpServers": {"box": server}}).decode())


def test_the_shape_that_mcp_clients_share_is_read(tmp_path: Path) -> None:
    servers = read(
        tmp_path,
        """
        mcpServers:
          files: {command: npx, args: [-y, some-server, /data], env: {TOKEN: "{{ secrets.token }}"}, cwd: /srv}
          search: {url: "https://search.example/mcp", headers: {Authorization: "Bearer {{ secrets.key }}"}}
        """,
    )
    files, search = servers["files"], servers["search"]
    assert isinstance(files, StdioDeclaration)
    assert (files.command, files.args, files.cwd) == ("npx", ("-y", "some-server", "/data"), Path("/srv"))
    assert files.env == {"TOKEN": "{{ secrets.token }}"}
    assert isinstance(search, HttpDeclaration)
    assert search.url == "https://search.example/mcp"
    assert (files.timeout_s, files.start_timeout_s, files.max_sessions) == (30, 15, 2)
    assert (files.max_output_bytes, files.effect, files.trust_annotations) == (1024 * 1024, ToolEffect.UNSAFE, False)


def test_json_is_read_as_it_is_indented_with_tabs_too(tmp_path: Path) -> None:
    text = '{\n\t"mcpServers": {"box": {"type": "stdio", "command": "x", "effects": {"get": "read_only"}}}\n}'
    assert read(tmp_path, text, "servers.json")["box"].effects == {"get": ToolEffect.READ_ONLY}


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({}, "mcpServers.box: should have either a command (stdio) or a url (streamable HTTP)"),
        ({"command": "x", "url": "https://a.example"}, "mcpServers.box: should have either a command"),
        ({"command": "x", "timeout": 3}, "mcpServers.box.timeout: Extra inputs are not permitted"),
        ({"command": "x", "timeout_s": 0}, "mcpServers.box.timeout_s: should be greater than 0"),
        ({"command": "x", "timeout_s": "1e400"}, "mcpServers.box.timeout_s: should be a finite number"),
        ({"command": "x", "env": {"PORT": 80}}, "mcpServers.box.env.PORT: should be a valid string"),
        ({"command": "x", "env": {"A B": "c"}}, "mcpServers.box.env: 'A B' is no environment variable"),
        ({"command": "x", "effect": "harmless"}, "mcpServers.box.effect: should be 'read_only', 'idempotent' or"),
        ({"command": "x", "effects": {"a": "none"}}, "mcpServers.box.effects.a: should be 'read_only'"),
        ({"command": "x", "headers": {"a": "b"}}, "mcpServers.box.headers: Extra inputs"),
        ({"command": "x", "type": "sse"}, "mcpServers.box.type: should be 'stdio'"),
        ({"url": "ftp://a.example"}, "mcpServers.box.url: should be an http:// or https:// URL with a host"),
        ({"url": "https://me:pass@a.example"}, "mcpServers.box.url: should have no credentials"),
        ({"url": "https://{{ secrets.host }}/"}, "mcpServers.box.url: should have no credentials, placeholders"),
        ({"url": "https://a.example:99999/"}, "mcpServers.box.url: Port out of range"),
        ({"url": "https://a.example", "headers": {"A B": "c"}}, "mcpServers.box.headers: 'A B' is no HTTP header"),
        ({"url": "https://a.example", "headers": {"A": "b\r\nC: d"}}, "mcpServers.box.headers: 'A' is no HTTP header"),
        ({"command": "x", "max_sessions": 65}, "mcpServers.box.max_sessions: should be less than or equal to 64"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, server: dict[str, Any], said: str) -> None:
    assert wrong(tmp_path, **server).startswith(said)


@pytest.mark.parametrize("name", ["", "a b", "a__b", "a_", "1a", "x" * 33, "ä"])
def test_a_server_that_could_not_be_told_from_its_tools_is_refused(tmp_path: Path, name: str) -> None:
    assert "is no name for a server" in problem(
        tmp_path, orjson.dumps({"mcpServers": {name: {"command": "x"}}}).decode()
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "should hold `mcpServers:`"),
        ("- a", "should hold `mcpServers:`"),
        ("servers: {}", "mcpServers: Field required"),
        ("mcpServers: {}\nmore: 1", "more: Extra inputs are not permitted"),
        ("mcpServers: [", "is no YAML at line 1"),
        ("mcpServers: {a: {command: x}, a: {command: y}}", "has 'a' twice in one place"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert problem(tmp_path, text).startswith(said)


def test_json_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    assert problem(tmp_path, '{"mcpServers": {}, "mcpServers": {}}', "a.json") == "has 'mcpServers' twice in one place"
    assert problem(tmp_path, "{", "a.json") == "is no JSON at line 1"


def test_no_value_of_the_file_is_repeated(tmp_path: Path) -> None:
    assert "hunter2" not in wrong(tmp_path, command="x", env={"TOKEN": "hunter2\0"})
    assert "hunter2" not in wrong(tmp_path, url="https://a.example", headers={"Authorization": "hunter2\n"})
    assert "hunter2" not in problem(tmp_path, "mcpServers: {a: {env: {TOKEN: 'hunter2}}}")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolSettingError, match=r"MCP_SERVERS_FILE: .*none\.yaml: cannot be read: No such file"):
        read_declarations(tmp_path / "none.yaml")
