"""What models call the tools of MCP servers."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from app.tools.mcp_servers.names import server_of, tool_name, unique_names

_SERVERS = st.from_regex(r"[A-Za-z_][A-Za-z0-9-]{0,10}(_[A-Za-z0-9-]{1,10})?", fullmatch=True).filter(
    lambda name: "__" not in name and not name.endswith("_")
)


def test_a_name_is_the_servers_and_the_tools() -> None:
    assert tool_name("files", "read") == "files__read"
    assert tool_name("files", "read.all/now") == "files__read_all_now"


def test_what_does_not_fit_has_no_name() -> None:
    assert tool_name("files", "") is None
    assert tool_name("files", "x" * 57) == "files__" + "x" * 57
    assert tool_name("files", "x" * 58) is None


@given(_SERVERS, st.text(max_size=40))
def test_a_name_fits_models_and_leads_back_to_its_server(server: str, tool: str) -> None:
    name = tool_name(server, tool)
    if name is not None:
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name)
        assert server_of(name) == server


def test_names_without_a_server_lead_to_none() -> None:
    assert server_of("calculate") == ""
    assert server_of("files__") == ""
    assert server_of("__read") == ""


def test_tools_that_cannot_be_told_apart_are_all_left_out() -> None:
    assert unique_names("s", ["a.b", "a/b", "c", "d", "d", "é"]) == {"c": "s__c", "é": "s___"}
