"""What is wrong with a value is told where it stands in the value, in words that say what to do."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.engine.agent import AgentDefinition
from app.services.complaints import complaints_of

_AGENT: dict[str, Any] = {"name": "a", "model": "demo/echo"}


@pytest.mark.parametrize(
    ("fields", "location", "text"),
    [
        ({"colour": 1}, ("colour",), "this is not known here"),
        ({"model": ""}, ("model",), "string should have at least 1 character"),
        ({"quorum": 2}, ("quorum",), "only with join_policy: quorum"),
        ({"join_policy": "quorum"}, ("quorum",), "needed by join_policy: quorum"),
        (
            {"tools": ["ask"], "tool_definitions": [{"type": "caller", "name": "ask"}]},
            ("tool_definitions",),
            "'ask' is named in tools or by a subagent as well; a tool that is defined here need not be named",
        ),
        (
            {"tool_definitions": [{"type": "http", "name": "x", "url": "https://a.example/{id}"}]},
            ("tool_definitions", 0, "url"),
            "{id} is none of the parameters' properties",
        ),
        ({"tool_definitions": [{"type": "caller"}]}, ("tool_definitions", 0, "name"), "this is required"),
        ({"tools": ["a", "a"]}, ("tools",), "names twice: a"),
        ({"policy": {"rules": [{}]}}, ("policy", "rules", 0, "rule_id"), "this is required"),
    ],
)
def test_a_complaint_names_the_field(fields: dict[str, Any], location: tuple[str | int, ...], text: str) -> None:
    value = {**_AGENT, **fields}
    with pytest.raises(ValidationError) as refused:
        AgentDefinition.model_validate(value)
    assert complaints_of(refused.value, value)[0] == (location, text)


def test_a_flood_of_complaints_is_cut_short() -> None:
    value = {**_AGENT, **{f"x{number}": 1 for number in range(100)}}
    with pytest.raises(ValidationError) as refused:
        AgentDefinition.model_validate(value)
    assert len(complaints_of(refused.value, value)) == 20
